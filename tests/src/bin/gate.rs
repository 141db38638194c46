//! A gate on the way of a controller to its API server, for the controller to be killed at a certain write.
//!
//! ```text
//! controller --TLS--> [ --listen   is it a write of a mirror?   may it pass? ] --TLS--> --to
//!                                  ^
//! test ------- --control (unix socket): `open`, `before`, `after`; the gate says `hit` ---
//! ```
//!
//! `before`: the next write does not get to the API server. `after`: it does, and the controller does not hear of it. From that
//! write on nothing passes until the next word of the test.

#![allow(clippy::disallowed_methods, reason = "test code: its tasks and settings are its own")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[derive(Parser)]
struct Args {
    /// Where the controller comes to.
    #[arg(long)]
    listen: SocketAddr,
    /// The API server.
    #[arg(long)]
    to: SocketAddr,
    /// With `apiserver.crt`, `apiserver.key` and `ca.crt`.
    #[arg(long)]
    credentials: PathBuf,
    /// Where the test says what may pass.
    #[arg(long)]
    control: PathBuf,
}

/// What may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    /// Up to the next write.
    Before,
    /// Up to the next write, and that.
    After,
    /// Nothing.
    Shut,
}

struct Gate {
    /// With the number of words of the test so far.
    mode: watch::Sender<(u64, Mode)>,
    hits: mpsc::UnboundedSender<()>,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Pass,
    /// Passes, and is not answered.
    PassUnheard,
    /// Is the one that was waited for, and does not pass.
    Stop,
    /// Comes too late.
    Hold,
}

impl Gate {
    fn judge(&self, request: &Request<Incoming>) -> (u64, Verdict) {
        let (mut word, mut verdict) = (0, Verdict::Pass);
        self.mode.send_if_modified(|(number, mode)| {
            word = *number;
            verdict = match *mode {
                Mode::Shut => Verdict::Hold,
                Mode::Before if writes(request) => Verdict::Stop,
                Mode::After if writes(request) => Verdict::PassUnheard,
                _ => Verdict::Pass,
            };
            let shuts = matches!(verdict, Verdict::Stop | Verdict::PassUnheard);
            if shuts {
                *mode = Mode::Shut;
            }
            shuts
        });
        (word, verdict)
    }

    /// Waits for the next word of the test.
    async fn reopened(&self, word: u64) {
        drop(self.mode.subscribe().wait_for(|(number, _)| *number != word).await);
    }
}

/// Whether it changes a mirror.
fn writes(request: &Request<Incoming>) -> bool {
    let changes = [Method::PATCH, Method::POST, Method::PUT, Method::DELETE].contains(request.method());
    let mut parts = request.uri().path().split('/');
    changes && parts.any(|part| ["services", "endpointslices", "serviceimports"].contains(&part))
}

type Answer = Response<Either<Incoming, Full<Bytes>>>;

async fn pass(gate: &Gate, server: &Mutex<SendRequest<Incoming>>, request: Request<Incoming>) -> Result<Answer> {
    let (word, verdict) = gate.judge(&request);
    match verdict {
        Verdict::Pass => Ok(server.lock().await.send_request(request).await?.map(Either::Left)),
        Verdict::PassUnheard => {
            let answer = server.lock().await.send_request(request).await?;
            answer.into_body().collect().await?;
            gate.hits.send(())?;
            gate.reopened(word).await;
            bail!("the gate is shut");
        }
        Verdict::Stop | Verdict::Hold => {
            if verdict == Verdict::Stop {
                gate.hits.send(())?;
            }
            gate.reopened(word).await;
            bail!("the gate is shut");
        }
    }
}

/// One connection of the controller, with one to the API server.
async fn serve(gate: Arc<Gate>, client: TcpStream, tls: (TlsAcceptor, TlsConnector), to: SocketAddr) -> Result<()> {
    let client = tls.0.accept(client).await?;
    let server = TcpStream::connect(to).await?;
    server.set_nodelay(true)?;
    let server = tls.1.connect(ServerName::IpAddress(to.ip().into()), server).await?;
    let (server, connection) = hyper::client::conn::http1::handshake(TokioIo::new(server)).await?;
    tokio::spawn(async move { drop(connection.await) });
    let server = Arc::new(Mutex::new(server));
    let passing = service_fn(move |request| {
        let (gate, server) = (Arc::clone(&gate), Arc::clone(&server));
        async move { pass(&gate, &server, request).await }
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), passing).await?;
    Ok(())
}

/// The words of the test.
async fn listen(gate: Arc<Gate>, control: UnixListener, mut hits: mpsc::UnboundedReceiver<()>) -> Result<()> {
    let (stream, _) = control.accept().await?;
    let (read, mut write) = stream.into_split();
    let mut words = BufReader::new(read).lines();
    loop {
        tokio::select! {
            word = words.next_line() => {
                let Some(word) = word? else { return Ok(()) };
                let mode = match word.as_str() {
                    "open" => Mode::Open,
                    "before" => Mode::Before,
                    "after" => Mode::After,
                    other => bail!("open, before or after, and not {other}"),
                };
                gate.mode.send_modify(|(number, current)| {
                    *number += 1;
                    *current = mode;
                });
                write.write_all(b"set\n").await?;
            }
            Some(()) = hits.recv() => write.write_all(b"hit\n").await?,
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok().context("a provider is there already")?;
    let read = |name: &str| std::fs::read(args.credentials.join(name)).with_context(|| name.to_owned());
    let certificates = CertificateDer::pem_slice_iter(&read("apiserver.crt")?).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&read("apiserver.key")?)?;
    let server = ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&read("ca.crt")?)?)?;
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tls = (TlsAcceptor::from(Arc::new(server)), TlsConnector::from(Arc::new(client)));

    let (hits, heard) = mpsc::unbounded_channel();
    let gate = Arc::new(Gate { mode: watch::Sender::new((0, Mode::Open)), hits });
    let control = UnixListener::bind(&args.control).context("cannot listen to the test")?;
    let front = TcpListener::bind(args.listen).await.context("cannot listen")?;
    let listening = listen(Arc::clone(&gate), control, heard);
    tokio::pin!(listening);
    loop {
        tokio::select! {
            ended = &mut listening => return ended,
            accepted = front.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let (gate, tls) = (Arc::clone(&gate), tls.clone());
                // A connection that breaks is a controller that died.
                tokio::spawn(async move { drop(serve(gate, stream, tls, args.to).await) });
            }
        }
    }
}
