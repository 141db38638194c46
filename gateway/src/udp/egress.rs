//! From the clients of one mirrored port to the clusters that were picked.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use linkspan_proto::configuration::PortTransport;
use linkspan_proto::names::ClusterName;
use linkspan_proto::refusal::Refusal;
use linkspan_proto::stream_header::{CONNECTED, StreamHeader, StreamKind};
use linkspan_runtime::task;
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, timeout};

use super::backend::Backend;
use super::flow::{Flow, Way};
use super::ingress::ended;
use super::socket::{Received, Socket};
use super::table::{FlowPermits, Table};
use crate::context::Gateway;
use crate::error::Failure;
use crate::link::{RecvHalf, SendHalf, Sink, StreamError};
use crate::listener::{DatagramSocket, Place};
use crate::outcome::{Direction, Entry, Loss, Outcome, Protocol, Record};
use crate::remote::admit_local;
use crate::route::{Routed, Target};
use crate::tcp::{REPLY, new_trace};

/// After an error of a listening socket, before it is read again.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a client whose flow was refused is refused without a look: a flood of datagrams to a service that is down costs
/// a few streams and lines of the log a second, and a resolver that asks again is served.
const REFUSED: Duration = Duration::from_millis(250);

/// The clients of one socket.
pub struct Egress {
    gateway: Arc<Gateway>,
    permits: FlowPermits,
    socket: Arc<Socket>,
    listen: SocketAddr,
    worker: usize,
    flows: Table<Flow>,
    /// Clients whose flows have ended, with their numbers. Never longer than there are flows.
    over: mpsc::UnboundedSender<(SocketAddr, u64)>,
}

/// Everything that one flow's task needs.
struct Carrier {
    gateway: Arc<Gateway>,
    flow: Arc<Flow>,
    routed: Routed,
    client: SocketAddr,
    worker: usize,
}

impl Egress {
    /// Carries what comes to `socket` until nobody wants that any more, or the gateway has ended.
    pub async fn serve(gateway: Arc<Gateway>, permits: FlowPermits, socket: DatagramSocket) {
        let DatagramSocket { socket, listen, worker, close } = socket;
        let socket = match Socket::new(socket) {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                tracing::error!(%listen, %error, "cannot use a socket of datagrams");
                return;
            }
        };
        let (over, mut ended) = mpsc::unbounded_channel();
        let drain = gateway.drain.clone();
        let mut egress = Self { gateway, permits, socket, listen, worker, flows: Table::new(), over };
        loop {
            let draining = drain.is_draining();
            if draining && egress.flows.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                () = close.cancelled() => break,
                () = drain.closed() => break,
                () = drain.draining(), if !draining => {}
                Some((client, number)) = ended.recv() => egress.flows.remove(client, number),
                readable = egress.socket.readable() => {
                    if let Err(error) = readable.and_then(|()| egress.receive()) {
                        // Of a socket that is not connected only a lack of memory is left to be told.
                        tracing::debug!(%listen, %error, "receiving datagrams failed; trying again");
                        tokio::time::sleep(PAUSE).await;
                    }
                    // What was received is sent by the connection's own task: it comes before more is received.
                    tokio::task::yield_now().await;
                }
            }
        }
        egress.flows.clear();
    }

    fn receive(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let socket = Arc::clone(&self.socket);
        let mut last: Option<Arc<Flow>> = None;
        socket.receive(|received| {
            // A stream of datagrams of one client is looked up once a batch.
            if last.as_ref().is_none_or(|flow| flow.client != received.from) {
                last = self.flow(&received, now);
            }
            if let Some(flow) = &last {
                flow.forward(received.payload, now);
            }
        })
    }

    /// The flow of a client; a new one, where it has none.
    fn flow(&mut self, received: &Received<'_>, now: Instant) -> Option<Arc<Flow>> {
        let known = self.flows.get(received.from);
        if let Some(flow) = known.filter(|flow| !flow.is_over()) {
            return Some(Arc::clone(flow));
        }
        let refused = known.is_some();
        // A socket of both families shows clients of IPv4 as `::ffff:a.b.c.d`.
        let client = SocketAddr::new(received.from.ip().to_canonical(), received.from.port());
        let routed = self.gateway.table.load().route(Place::udp(self.listen), client.ip());
        let Some(routed) = routed.filter(|_| !self.gateway.drain.is_draining()) else {
            self.lost(None, client, Loss::Refused);
            return None;
        };
        if refused {
            self.lost(Some(&routed), client, Loss::Refused);
            return None;
        }
        let Some(permit) = self.flows.admit(client.ip(), &self.permits, now) else {
            self.lost(Some(&routed), client, Loss::FlowLimit);
            return None;
        };
        let from = received.to.filter(|_| self.listen.ip().is_unspecified());
        let new = |number| Arc::new(Flow::new(number, received.from, Arc::clone(&self.socket), from, now));
        let flow = Arc::clone(self.flows.insert(received.from, permit, new));
        let gateway = Arc::clone(&self.gateway);
        let carrier = Carrier { gateway, flow: Arc::clone(&flow), routed, client, worker: self.worker };
        let over = self.over.clone();
        // Detached: the drain waits for it by its guard, and the table ends it by its token.
        drop(task::spawn("udp_flow", async move {
            let (flow, drain) = (Arc::clone(&carrier.flow), carrier.gateway.drain.clone());
            let (client, number) = (flow.client, flow.number);
            if is_refused(carrier.run().await) {
                tokio::select! {
                    () = tokio::time::sleep(REFUSED) => {}
                    () = flow.ended.cancelled() => {}
                    () = drain.draining() => {}
                }
            }
            // An error says that the socket is closed.
            _ = over.send((client, number));
        }));
        Some(flow)
    }

    /// Counts a datagram of a client that gets no flow.
    fn lost(&self, routed: Option<&Routed>, client: SocketAddr, why: Loss) {
        let mut entry = Entry::new(Direction::Outbound, Protocol::Udp);
        entry.client = Some(client);
        if let Some(routed) = routed {
            entry.service = Some(routed.route.service().clone());
            entry.port = routed.route.port();
        }
        self.gateway.recorder.lost(&entry, why, 1);
    }
}

/// Whether nobody would take the flow. One whose link broke goes elsewhere with the client's next datagram.
fn is_refused(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::NoTarget | Outcome::Refused(_))
}

impl Carrier {
    /// Until its end, and how that was.
    async fn run(self) -> Outcome {
        let _unfinished = self.gateway.drain.guard();
        let route = &self.routed.route;
        let mut entry = Entry::new(Direction::Outbound, Protocol::Udp);
        entry.service = Some(route.service().clone());
        entry.port = route.port();
        entry.mirror = Some(route.name().clone());
        entry.source = Some(self.routed.source.clone());
        entry.client = Some(self.client);
        entry.traceparent = Some(new_trace());
        let first = route.pick(&self.gateway.links, &[]);
        entry.peer = first.as_ref().ok().map(|target| target.cluster.clone());
        let mut record = self.gateway.record(entry);
        let carried = match first {
            Ok(target) => tokio::select! {
                carried = self.try_targets(target, &mut record) => Some(carried),
                () = self.flow.ended.cancelled() => None,
                () = self.gateway.drain.closed() => Some(Ok(Outcome::Drained)),
            },
            Err(no_target) => Some(Err(no_target.into())),
        };
        let outcome = match carried {
            Some(Ok(outcome)) => outcome,
            Some(Err(failure)) => {
                record.entry().note = Some(failure.to_string());
                failure.outcome
            }
            None => self.flow.moved.outcome(),
        };
        self.flow.give_up();
        self.flow.moved.tell(&mut record);
        record.finish(outcome);
        outcome
    }

    /// Tries targets until one takes the flow, then waits for its end.
    async fn try_targets(&self, mut target: Target, record: &mut Record) -> Result<Outcome, Failure> {
        let mut tried: Vec<ClusterName> = Vec::new();
        loop {
            record.entry().peer = Some(target.cluster.clone());
            record.entry().attempts += 1;
            let result =
                if target.local { self.local(record).await } else { self.remote(&target, tried.len(), record).await };
            let failure = match result {
                Err(failure) if failure.elsewhere => failure,
                ended => return ended,
            };
            tracing::debug!(target = %target.cluster, %failure, "target failed; trying the next one");
            tried.push(target.cluster);
            // The newest table: the failure may be the reason for which it has just changed.
            let table = self.gateway.table.load_full();
            let route = table.current(&self.routed.route).unwrap_or(&self.routed.route);
            target = match route.pick(&self.gateway.links, &tried) {
                Ok(target) => target,
                // The last target's own reason says more than "all tried".
                Err(_) => return Err(failure),
            };
        }
    }

    /// Over a link.
    async fn remote(&self, target: &Target, attempt: usize, record: &mut Record) -> Result<Outcome, Failure> {
        let (mut send, mut recv, association) = self.gateway.links.associate(self.worker, &target.cluster).await?;
        association.take(Arc::<Flow>::clone(&self.flow));
        let header = self.header(attempt, record).encode().map_err(|error| Failure::client(&error))?;
        match timeout(REPLY, self.connect(header, &mut send, &mut recv, Way::Link(association.outlet().clone()))).await
        {
            Ok(connected) => connected?,
            // Silence does not say that nothing was processed.
            Err(_) => return Err(Failure::stream(StreamError::Reset(Refusal::ConnectTimeout), true).for_good()),
        }
        self.flow.settle();
        let moved = &self.flow.moved;
        let outcome = tokio::select! {
            ended = ended(&mut recv) => ended.unwrap_or_else(|| moved.outcome()),
            () = moved.over(Duration::ZERO, &self.gateway.drain, record) => moved.outcome(),
        };
        // Fails only where the stream is no more.
        _ = send.finish();
        Ok(outcome)
    }

    /// Sends the header, and with it what the client has sent, and waits for the answer.
    async fn connect(&self, header: Bytes, send: &mut SendHalf, recv: &mut RecvHalf, way: Way) -> Result<(), Failure> {
        send.write(header).await.map_err(|error| Failure::stream(error, false))?;
        // Datagrams leave before stream data: whoever gets them knows to wait for the header.
        self.flow.try_way(way);
        let reply = recv.read(1).await.map_err(|error| Failure::stream(error, true))?;
        match reply {
            Some(bytes) if bytes.first() == Some(&CONNECTED) => Ok(()),
            Some(_) | None => Err(Failure::stream(StreamError::Reset(Refusal::Protocol), true)),
        }
    }

    /// To a backend of this cluster.
    async fn local(&self, record: &mut Record) -> Result<Outcome, Failure> {
        let (route, source) = (&self.routed.route, self.routed.source.clone());
        let mirror = route.mirror();
        let port = (PortTransport::Udp, route.port());
        let table = self.gateway.table.load_full();
        let admitted = admit_local(&table, &mirror.service, port, mirror.endpoint.as_ref(), source)?;
        drop(table);
        let mut backend = Backend::pick(&admitted)?;
        record.entry().backend = Some(backend.address());
        self.flow.try_way(Way::Backend(Arc::clone(&backend.socket), backend.address()));
        self.flow.settle();
        let moved = &self.flow.moved;
        Ok(tokio::select! {
            why = backend.answers(|payload| self.flow.deliver(payload)) => Outcome::Refused(why),
            () = moved.over(Duration::ZERO, &self.gateway.drain, record) => moved.outcome(),
        })
    }

    fn header(&self, attempt: usize, record: &mut Record) -> StreamHeader {
        let route = &self.routed.route;
        StreamHeader {
            service: Some(route.service().clone()),
            port: route.port(),
            endpoint: route.mirror().endpoint.clone(),
            source: Some(self.routed.source.clone()),
            traceparent: record.entry().traceparent.clone(),
            path: vec![self.gateway.own.cluster.clone()],
            attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
            client: Some(self.client),
            ..StreamHeader::new(StreamKind::Udp)
        }
    }
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress").field("listen", &self.listen).field("worker", &self.worker).finish_non_exhaustive()
    }
}
