//! What the gateways of this cluster are told, and what they report. The other half of `proto/configuration.proto`.
//!
//! ```text
//! mirror -> Store (resources, and a log of which changed when)
//!              |  each gateway: everything once, then what changed since its last update
//!              v
//!           Subscribe <-- reports --> Reports (links, rejections, acknowledged generation), by gateway
//! ```
//!
//! - **In**: [`crate::mirror::Changes`] from the mirror stage; connections of gateways on `controller.sock`; their reports and requests
//!   for certificates.
//! - **Out**: updates; [`Reports`]; certificates.
//! - **Refuses when**: a gateway sends anything before its hello; a certificate is asked for other names than
//!   [`crate::ca`] grants.
//! - **Never does**: queue states for a slow gateway: it gets what is newest when it is ready for more. Send an update
//!   before the first complete state, since an empty one would make gateways drop everything.
//! - **Numbers**: [`CONNECTIONS_MAX`], [`REPORT_MAX`], [`UPDATE_PACE`], and [`store::LOG_MAX`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use linkspan_proto::configuration::{LinkReport, Rejection};

// The gRPC service.
pub mod server;
// Resources and their history.
pub mod store;

pub use server::{AttestError, Attestor, Context, serve};
pub use store::Store;

/// Connections of gateways: each of 64, the most that `linkspan install` runs, has one for its configuration and for moments two
/// more for its certificates, and a rolling update has room.
pub const CONNECTIONS_MAX: usize = 256;
/// The longest report: the links of a gateway with hundreds of peers.
pub const REPORT_MAX: usize = 4 * 1024 * 1024;
/// Between two updates of one gateway. Changes arrive in bursts, and a burst applied at once costs one snapshot there.
pub const UPDATE_PACE: Duration = Duration::from_millis(10);

/// What one gateway said last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayState {
    /// Its version.
    pub version: String,
    /// The newest generation in force there.
    pub acknowledged: u64,
    /// What is not in force there.
    pub rejections: Vec<Rejection>,
    /// Its links; `None` until it has reported once.
    pub links: Option<Vec<LinkReport>>,
}

/// All connected gateways, by boot id.
pub type Reports = BTreeMap<String, Arc<GatewayState>>;
