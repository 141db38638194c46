//! A UDP relay with a known delay and a known loss: a path whose figures a test can hold against what is reported.
//!
//! ```text
//! client <--> [ --listen   every packet: drop each Nth, wait, pass on   a socket of its own for each client ] <--> --to
//! ```

#![allow(clippy::disallowed_methods, reason = "test code: its tasks and settings are its own")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// The largest UDP datagram.
const DATAGRAM: usize = 65_536;

#[derive(Parser)]
struct Args {
    /// Where clients send to.
    #[arg(long)]
    listen: SocketAddr,
    /// Where their packets go.
    #[arg(long)]
    to: SocketAddr,
    /// How long each packet is kept, in each direction.
    #[arg(long)]
    delay_millis: u64,
    /// Each how many packets one is dropped, in each direction; 0: none.
    #[arg(long, default_value_t = 0)]
    drop_every: u64,
}

/// One direction: a queue of packets with the time when each is passed on.
struct Direction {
    queue: mpsc::UnboundedSender<(Instant, Vec<u8>)>,
    delay: Duration,
    drop_every: u64,
    seen: u64,
}

impl Direction {
    /// Passes on to `to` from `socket`.
    fn new(args: &Args, socket: Arc<UdpSocket>, to: SocketAddr) -> Self {
        let (queue, mut packets) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        tokio::spawn(async move {
            while let Some((at, packet)) = packets.recv().await {
                sleep_until(at).await;
                // A full socket buffer is a loss as well; the receiver's protocol deals with it.
                drop(socket.send_to(&packet, to).await);
            }
        });
        Self { queue, delay: Duration::from_millis(args.delay_millis), drop_every: args.drop_every, seen: 0 }
    }

    fn pass(&mut self, packet: &[u8]) {
        self.seen += 1;
        if self.drop_every == 0 || !self.seen.is_multiple_of(self.drop_every) {
            drop(self.queue.send((Instant::now() + self.delay, packet.to_vec())));
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let front = Arc::new(UdpSocket::bind(args.listen).await.context("cannot listen")?);
    let mut forward: HashMap<SocketAddr, Direction> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (length, client) = front.recv_from(&mut buffer).await?;
        let direction = match forward.entry(client) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let back = Arc::new(UdpSocket::bind((args.listen.ip(), 0)).await?);
                let mut backward = Direction::new(&args, Arc::clone(&front), client);
                let from = Arc::clone(&back);
                tokio::spawn(async move {
                    let mut buffer = vec![0; DATAGRAM];
                    while let Ok((length, _)) = from.recv_from(&mut buffer).await {
                        backward.pass(&buffer[..length]);
                    }
                });
                new.insert(Direction::new(&args, back, args.to))
            }
        };
        direction.pass(&buffer[..length]);
    }
}
