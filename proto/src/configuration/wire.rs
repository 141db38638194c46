//! Resources as the messages of `proto/configuration.proto`, and back.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::{Report, Resource, ResourceKey};
use crate::generated::configuration as wire;

/// The most bytes of resources in one message; under tonic's default limit of 4 MiB with room to spare.
const MAX_UPDATE_LEN: usize = 1024 * 1024;

/// One part of a change, as the gateway reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Counts up with each change; the parts of one change share it.
    pub generation: u64,
    /// The first part of a full configuration.
    pub reset: bool,
    /// The last part: apply all parts as one.
    pub last: bool,
    /// New or changed resources.
    pub upserts: Vec<Resource>,
    /// Resources that are gone.
    pub removals: Vec<ResourceKey>,
    /// One sentence for each item that this build cannot read, from a controller of another version. The rest holds.
    pub unreadable: Vec<String>,
}

/// Why a message could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// Not the JSON that it should be.
    #[error("a configuration message is not valid: {0}")]
    Json(#[from] serde_json::Error),
}

/// Writes one change as one or several messages. `reset`: the change is the full configuration.
///
/// # Errors
/// Never for resources whose numbers are finite; the type keeps the caller honest.
pub fn encode_updates(
    generation: u64,
    reset: bool,
    upserts: &[Resource],
    removals: &[ResourceKey],
) -> Result<Vec<wire::Update>, ConfigurationError> {
    let mut messages = vec![wire::Update { generation, reset, ..wire::Update::default() }];
    let mut taken = 0;
    let mut room_for = |messages: &mut Vec<wire::Update>, length: usize| {
        if taken > 0 && taken + length > MAX_UPDATE_LEN {
            messages.push(wire::Update { generation, ..wire::Update::default() });
            taken = 0;
        }
        taken += length;
    };
    for resource in upserts {
        let body = Bytes::from(serde_json::to_vec(resource)?);
        room_for(&mut messages, body.len());
        messages.last_mut().expect("there is always a message").upserts.push(body);
    }
    for key in removals {
        let body = Bytes::from(serde_json::to_vec(key)?);
        room_for(&mut messages, body.len());
        messages.last_mut().expect("there is always a message").removals.push(body);
    }
    messages.last_mut().expect("there is always a message").last = true;
    Ok(messages)
}

/// Reads one message. An item that cannot be read is named in [`Update::unreadable`] and costs only itself.
#[must_use]
pub fn decode_update(update: &wire::Update) -> Update {
    let mut unreadable = Vec::new();
    let upserts = update.upserts.iter().filter_map(|body| read(body, &mut unreadable)).collect();
    let removals = update.removals.iter().filter_map(|body| read(body, &mut unreadable)).collect();
    Update { generation: update.generation, reset: update.reset, last: update.last, upserts, removals, unreadable }
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8], unreadable: &mut Vec<String>) -> Option<T> {
    serde_json::from_slice(body).map_err(|error| unreadable.push(error.to_string())).ok()
}

/// Writes a report.
///
/// # Errors
/// Never for reports whose numbers are finite; the type keeps the caller honest.
pub fn encode_report(report: &Report) -> Result<wire::GatewayReport, ConfigurationError> {
    Ok(wire::GatewayReport { body: serde_json::to_vec(report)?.into() })
}

/// Reads a report.
///
/// # Errors
/// When the message is no report that this build knows.
pub fn decode_report(report: &wire::GatewayReport) -> Result<Report, ConfigurationError> {
    Ok(serde_json::from_slice(&report.body)?)
}

/// Numbers by port. JSON's keys are texts, and serde's reader of tagged enums does not turn them back into numbers.
pub(super) fn by_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u16, u32>, D::Error> {
    BTreeMap::<String, u32>::deserialize(deserializer)?
        .into_iter()
        .map(|(port, number)| {
            Ok((port.parse().map_err(|_| D::Error::custom(format!("`{port}` is not a port")))?, number))
        })
        .collect()
}
