//! What several tests build: names, catalogue entries, peers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame};

use linkspan_proto::configuration::{DefaultPolicy, Peer};
use linkspan_proto::exchange::{CatalogueEntry, CataloguePort, Protocol};
use linkspan_proto::identity::TrustDomain;
use linkspan_proto::names::{ClusterName, EndpointName, PortName, ServiceKey};

use serde_json::Value;

use crate::exchange::{Entries, Freshness, PeerState, View};
use crate::mirror::Addresses;
use crate::mirror::desired::{self, Ground, Member, Taken, Wanted};

pub(crate) fn cluster(name: &str) -> ClusterName {
    ClusterName::parse(name).unwrap()
}

pub(crate) fn key(text: &str) -> ServiceKey {
    ServiceKey::parse(text).unwrap()
}

/// Ports as `80`, `http:80` or `dns:53/UDP`.
pub(crate) fn entry(service: &str, ports: &[&str], ready: u32) -> Arc<CatalogueEntry> {
    let port = |text: &&str| {
        let (text, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let (name, number) = text.split_once(':').map_or((None, text), |(name, number)| (Some(name), number));
        CataloguePort {
            port: number.parse().unwrap(),
            name: name.map(|name| PortName::parse(name).unwrap()),
            protocol: Protocol::from_kubernetes(protocol).unwrap(),
            app_protocol: None,
            ready,
            total: None,
        }
    };
    Arc::new(CatalogueEntry {
        service: key(service),
        headless: false,
        ports: ports.iter().map(port).collect(),
        endpoints: Vec::new(),
        labels: BTreeMap::new(),
        details: Default::default(),
    })
}

/// The mirror of a service of west.
pub(crate) fn wanted(service: &str) -> Wanted {
    let ground = Ground::new(cluster("east"), [cluster("west")].into());
    let entry = entry(service, &["80"], 1);
    let taken = Taken { locally: &|_| false, by_peer: &|_| false };
    let mut fronts = Addresses::new("127.80.0.0/12".parse().unwrap()).into();
    desired::cluster(&ground, Member { cluster: &cluster("west"), entry: &entry }, taken, &mut fronts).unwrap()
}

/// A headless service with port 80 and these endpoints; `!` in front means not ready.
pub(crate) fn headless(service: &str, endpoints: &[&str]) -> Arc<CatalogueEntry> {
    let mut entry = entry(service, &["80"], 1).as_ref().clone();
    entry.headless = true;
    entry.endpoints = endpoints
        .iter()
        .map(|name| (EndpointName::parse(name.trim_start_matches('!')).unwrap(), !name.starts_with('!')))
        .collect();
    Arc::new(entry)
}

pub(crate) fn entries(all: impl IntoIterator<Item = Arc<CatalogueEntry>>) -> Entries {
    all.into_iter().map(|entry| (entry.service.clone(), entry)).collect()
}

pub(crate) fn view(entries: Entries, freshness: Freshness) -> View {
    let verified = Some((1, 1, [0; 32]));
    View {
        entries: Arc::new(entries),
        verified,
        freshness,
        withheld: Arc::default(),
        synchronised: true,
        outdated: false,
    }
}

pub(crate) fn peer_state(entries: Entries, freshness: Freshness) -> Arc<PeerState> {
    Arc::new(PeerState { view: view(entries, freshness), connected: true, confirmed_unix: Some(1), trouble: None })
}

pub(crate) fn peer(name: &str) -> Arc<Peer> {
    Arc::new(Peer {
        cluster: cluster(name),
        trust_domain: TrustDomain::parse(&format!("{name}.linkspan.internal")).unwrap(),
        trust_bundle: String::new(),
        addresses: Vec::new(),
        default_policy: DefaultPolicy::Allow,
        transport: Default::default(),
        congestion: Default::default(),
    })
}

/// The body of an answer: a text, or a watch on which nothing happens.
struct Answer(Option<Bytes>, bool);

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(text) => Poll::Ready(Some(Ok(Frame::data(text)))),
            None if self.1 => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

/// A client of an API server that answers by `answer` (of the path, and whether it is a watch) with a status and a body. A
/// watch that is granted stays open, and nothing happens on it.
pub(crate) fn api_server(answer: impl Fn(&str, bool) -> (u16, Value) + Send + Sync + 'static) -> kube::Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let (status, mut body) = answer(request.uri().path(), watches);
        if status >= 300 {
            body["kind"] = "Status".into();
            body["code"] = status.into();
        }
        let is_open = watches && status < 300;
        let body = Answer((!is_open).then(|| Bytes::from(body.to_string())), is_open);
        std::future::ready(http::Response::builder().status(status).body(body))
    });
    kube::Client::new(service, "default")
}
