//! The versions of Links and traffic policies that are in force, as a text that a restart reads again: a version that is
//! refused leaves the one before in force, and the controller may have started between the two.

use linkspan_proto::resources::{ClusterTrafficPolicy, Link};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Accepted {
    /// In the order in which they came into force, by which trust domains are given (F-41).
    pub links: Vec<Link>,
    /// In the order of their names.
    pub traffic: Vec<ClusterTrafficPolicy>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct File {
    links: Vec<Value>,
    traffic: Vec<Value>,
}

impl Accepted {
    /// Reads what [`Self::to_text`] wrote. An object that is not understood, because another version of this program wrote
    /// it, costs only itself.
    ///
    /// # Errors
    /// When the text as a whole is not one of ours.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let file: File = serde_json::from_str(text)?;
        Ok(Self { links: objects(file.links), traffic: objects(file.traffic) })
    }

    /// For [`Self::parse`].
    ///
    /// # Errors
    /// When an object has no form in JSON. Resources always do.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        let file = File {
            links: self.links.iter().map(serde_json::to_value).collect::<Result<_, _>>()?,
            traffic: self.traffic.iter().map(serde_json::to_value).collect::<Result<_, _>>()?,
        };
        serde_json::to_string(&file)
    }
}

fn objects<T: DeserializeOwned>(values: Vec<Value>) -> Vec<T> {
    let read = |value| match serde_json::from_value(value) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(%error, "an object that was in force is not understood any more");
            None
        }
    };
    values.into_iter().filter_map(read).collect()
}
