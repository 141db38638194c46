//! What the catalog publishes: immutable, shared, cheap to compare by pointer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use linkspan_proto::configuration::{Export, Peer, Tier};
use linkspan_proto::exchange::CatalogueEntry;
use linkspan_proto::names::{ClusterName, ServiceKey};

use crate::verdict::Verdict;

/// Everything of this cluster that the later stages need.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What peers are told.
    pub exported: Arc<BTreeMap<ServiceKey, Arc<CatalogueEntry>>>,
    /// What the gateway lets peers reach: the same services, with addresses and rules.
    pub reachable: Arc<BTreeMap<ServiceKey, Arc<Export>>>,
    /// What came of each wish to export.
    pub exports: Arc<BTreeMap<ServiceKey, Arc<ExportReport>>>,
    /// The accepted Links.
    pub peers: Arc<BTreeMap<ClusterName, Arc<Peer>>>,
    /// Peers whose Link is there, while no version of it is in force: what an earlier version made stays.
    pub unsettled: Arc<BTreeSet<ClusterName>>,
    /// What came of each Link, by the object's name.
    pub links: Arc<BTreeMap<String, Arc<LinkReport>>>,
    /// Traffic policies by service.
    pub traffic: Arc<BTreeMap<ServiceKey, Arc<Traffic>>>,
    /// All local Services: names that no mirror may take.
    pub services: Arc<BTreeSet<ServiceKey>>,
}

impl PartialEq for Snapshot {
    fn eq(&self, other: &Self) -> bool {
        self.exported == other.exported
            && self.reachable == other.reachable
            && self.exports == other.exports
            && self.peers == other.peers
            && self.unsettled == other.unsettled
            && self.links == other.links
            && self.traffic == other.traffic
            && self.services == other.services
    }
}

/// What came of the wish to export one service.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportReport {
    /// `metadata.generation` of the ServiceExport, where it has one.
    pub generation: Option<i64>,
    /// Exported by Linkerd's label and not by a ServiceExport.
    pub by_label: bool,
    /// `Valid` and `Ready`.
    pub verdicts: Vec<Verdict>,
}

/// What came of one Link.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkReport {
    /// `metadata.generation` of the Link, where it has one.
    pub generation: Option<i64>,
    /// `Accepted`.
    pub verdict: Verdict,
    /// Whether a Link of this name is in force: this version of it, or an earlier one.
    pub in_force: bool,
}

/// How the traffic for one clusterset name is spread.
#[derive(Clone, Debug, PartialEq)]
pub struct Traffic {
    /// The policy's name.
    pub policy: String,
    /// Its tiers.
    pub tiers: Vec<Tier>,
    /// `Accepted`: false when this or another policy for the same service is not in force.
    pub verdict: Verdict,
}
