//! Any one of the kinds that a manifest may hold.

use std::fmt;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, Serializer};

use super::{ClusterTrafficPolicy, ExportPolicy, FieldError, Link, ServiceExport, kubernetes};
use crate::names::{ClusterName, NameError, Namespace, ServiceAccountName, ServiceName};

/// The kinds that a manifest may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `multicluster.x-k8s.io` ServiceExport.
    ServiceExport,
    /// Our Link.
    Link,
    /// Our ClusterTrafficPolicy.
    ClusterTrafficPolicy,
    /// Our ExportPolicy.
    ExportPolicy,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceExport,
        Self::Link,
        Self::ClusterTrafficPolicy,
        Self::ExportPolicy,
    ];

    /// As `kind` spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceExport => "ServiceExport",
            Self::Link => "Link",
            Self::ClusterTrafficPolicy => "ClusterTrafficPolicy",
            Self::ExportPolicy => "ExportPolicy",
        }
    }

    /// The values of `apiVersion` that are accepted, the preferred first.
    #[must_use]
    pub const fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Service => &["v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::ServiceExport => &["multicluster.x-k8s.io/v1alpha1", "multicluster.x-k8s.io/v1beta1"],
            Self::Link | Self::ClusterTrafficPolicy | Self::ExportPolicy => &[super::API_VERSION],
        }
    }

    /// Whether objects of this kind live in a namespace.
    #[must_use]
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Link)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// What names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace; empty for kinds without.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(formatter, "{} {}", self.kind, self.name),
            namespace => write!(formatter, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// An object of any kind. One that came through [`crate::manifest`] has a valid name, and a valid namespace where its kind has one.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "objects are few, and live in maps behind their keys")]
pub enum Object {
    /// `v1` Service.
    Service(Service),
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// `multicluster.x-k8s.io` ServiceExport.
    ServiceExport(ServiceExport),
    /// Our Link.
    Link(Link),
    /// Our ClusterTrafficPolicy.
    ClusterTrafficPolicy(ClusterTrafficPolicy),
    /// Our ExportPolicy.
    ExportPolicy(ExportPolicy),
}

impl Object {
    /// Which kind it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ServiceExport(_) => Kind::ServiceExport,
            Self::Link(_) => Kind::Link,
            Self::ClusterTrafficPolicy(_) => Kind::ClusterTrafficPolicy,
            Self::ExportPolicy(_) => Kind::ExportPolicy,
        }
    }

    /// Its metadata.
    #[must_use]
    pub const fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::ServiceExport(object) => &object.metadata,
            Self::Link(object) => &object.metadata,
            Self::ClusterTrafficPolicy(object) => &object.metadata,
            Self::ExportPolicy(object) => &object.metadata,
        }
    }

    /// Its metadata, to be changed.
    #[must_use]
    pub const fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Service(object) => &mut object.metadata,
            Self::EndpointSlice(object) => &mut object.metadata,
            Self::ServiceExport(object) => &mut object.metadata,
            Self::Link(object) => &mut object.metadata,
            Self::ClusterTrafficPolicy(object) => &mut object.metadata,
            Self::ExportPolicy(object) => &mut object.metadata,
        }
    }

    /// Its name; empty if it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// Its namespace; empty if it has none.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.metadata().namespace.as_deref().unwrap_or_default()
    }

    /// Checks names and everything else that the types alone do not say, as an API server would.
    ///
    /// # Errors
    /// When a rule is broken: the first one, with its field.
    pub fn validate(&self) -> Result<(), FieldError> {
        self.validate_names()?;
        match self {
            Self::Service(object) => kubernetes::service(object),
            Self::EndpointSlice(object) => kubernetes::endpoint_slice(object),
            Self::ServiceExport(object) => kubernetes::service_export(object),
            Self::Link(object) => object.spec.validate(),
            Self::ClusterTrafficPolicy(object) => object.spec.validate(),
            Self::ExportPolicy(object) => object.spec.validate(),
        }
    }

    fn validate_names(&self) -> Result<(), FieldError> {
        let name = self.name();
        if name.is_empty() {
            return Err(FieldError::new("metadata.name", "is missing: every resource has a name"));
        }
        let result = match self {
            Self::Service(_) | Self::ServiceExport(_) => ServiceName::parse(name).map(drop),
            Self::Link(_) => ClusterName::parse(name).map(drop),
            // Any DNS subdomain, as in Kubernetes; a service account's name has the same grammar.
            Self::EndpointSlice(_) | Self::ClusterTrafficPolicy(_) | Self::ExportPolicy(_) => {
                ServiceAccountName::parse(name).map(drop).map_err(|error| match error {
                    NameError::TooLong { length, max, .. } => NameError::TooLong { what: "name", length, max },
                    _ => NameError::Invalid { what: "name", text: name.to_owned() },
                })
            }
        };
        result.map_err(|error| FieldError::new("metadata.name", error.to_string()))?;
        if self.kind().is_namespaced() {
            let parsed = Namespace::parse(self.namespace());
            parsed.map_err(|error| FieldError::new("metadata.namespace", error.to_string()))?;
        }
        Ok(())
    }

    /// What names it.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), namespace: self.namespace().to_owned(), name: self.name().to_owned() }
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Service(object) => object.serialize(serializer),
            Self::EndpointSlice(object) => object.serialize(serializer),
            Self::ServiceExport(object) => object.serialize(serializer),
            Self::Link(object) => object.serialize(serializer),
            Self::ClusterTrafficPolicy(object) => object.serialize(serializer),
            Self::ExportPolicy(object) => object.serialize(serializer),
        }
    }
}
