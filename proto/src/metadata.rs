//! Labels and annotations that go with an exported service, and those that never do.
//!
//! What a peer says about a Service must not steer anything here: labels select, and annotations command controllers. So a
//! key in a domain of Kubernetes or of a tool that acts on Services is never copied, whoever sends it ([`is_owned`]); an
//! operator may exclude more ([`Exclusions`]). Both count at both ends: the exporter does not send it, the importer does not
//! take it.
//!
//! Refuses when: a key or value would be refused by an API server.
//! Never does: change a key or a value.
//! Numbers: [`MAX_KEY_LEN`], [`MAX_LABEL_VALUE_LEN`], [`MAX_ANNOTATION_LEN`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most bytes of a key, its domain included: what Kubernetes allows for the domain alone.
pub const MAX_KEY_LEN: usize = 253;

/// The most bytes of a label's value, as in Kubernetes.
pub const MAX_LABEL_VALUE_LEN: usize = 63;

/// The most bytes of an annotation's value. Larger ones are documents of some tool, such as a whole configuration.
pub const MAX_ANNOTATION_LEN: usize = 1024;

/// The most bytes of a key's part behind its domain, as in Kubernetes.
const MAX_KEY_NAME_LEN: usize = 63;

/// Domains, with everything below them, whose keys are instructions to somebody: Kubernetes itself, meshes, tools that
/// deploy and prune by label or annotation, and controllers that act on Services.
const OWNED_DOMAINS: [&str; 57] = [
    "alibabacloud.com",
    "aliyun.com",
    "amazonaws.com",
    "argoproj.io",
    "cattle.io",
    "cert-manager.io",
    "cilium.io",
    "cloud.google.com",
    "co.elastic.hints",
    "co.elastic.logs",
    "co.elastic.metrics",
    "co.elastic.monitor",
    "dapr.io",
    "datadoghq.com",
    "dynatrace.com",
    "fluxcd.io",
    "getambassador.io",
    "gke.io",
    "haproxy.com",
    "haproxy.org",
    "hashicorp.com",
    "helm.sh",
    "hetzner.cloud",
    "io.cilium",
    "istio.io",
    "k8s.io",
    "keda.sh",
    "kiali.io",
    "knative.dev",
    "konghq.com",
    "kube-vip.io",
    "kubernetes.io",
    "kubesphere.io",
    "kubevip.io",
    "kuma.io",
    "linkerd.io",
    "linkspan.io",
    "loxilb.io",
    "metallb.io",
    "metallb.universe.tf",
    "newrelic.com",
    "nginx.com",
    "nginx.org",
    "ngrok.com",
    "openshift.io",
    "oraclecloud.com",
    "pomerium.io",
    "projectcalico.org",
    "projectcontour.io",
    "prometheus.io",
    "skupper.io",
    "solo.io",
    "stakater.com",
    "submariner.io",
    "tailscale.com",
    "traefik.io",
    "x-k8s.io",
];

/// Keys in those domains that only describe. `app.kubernetes.io/instance` is not among them: Argo CD prunes by it.
const DESCRIBING: [&str; 5] = [
    "app.kubernetes.io/component",
    "app.kubernetes.io/name",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    // Tells Linkerd's proxies beside local clients what it tells those beside the service.
    OPAQUE_PORTS_ANNOTATION,
];

/// On a Service, as Linkerd has it: ports whose bytes are carried as they are, such as `3306,8000-8010`.
pub const OPAQUE_PORTS_ANNOTATION: &str = "config.linkerd.io/opaque-ports";

/// Whether a key is an instruction to somebody, and is never copied between clusters.
#[must_use]
pub fn is_owned(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return false };
    let is_below = |owned: &str| domain.strip_suffix(owned).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    OWNED_DOMAINS.into_iter().any(is_below) && !DESCRIBING.contains(&key)
}

/// Whether an API server takes the label.
#[must_use]
pub fn is_label(key: &str, value: &str) -> bool {
    is_key(key) && (value.is_empty() || is_name(value, MAX_LABEL_VALUE_LEN))
}

/// Whether an API server takes the annotation, and a person can read it.
#[must_use]
pub fn is_annotation(key: &str, value: &str) -> bool {
    is_key(key)
        && value.len() <= MAX_ANNOTATION_LEN
        && !value.chars().any(|each| each.is_control() && !matches!(each, '\n' | '\t'))
}

/// Whether it is a qualified name, as Kubernetes calls it: `name`, or `domain/name`.
#[must_use]
pub fn is_key(key: &str) -> bool {
    let (domain, name) = key.split_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    key.len() <= MAX_KEY_LEN && is_name(name, MAX_KEY_NAME_LEN) && domain.is_none_or(crate::names::is_subdomain)
}

/// `[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?`, as Kubernetes has it.
fn is_name(text: &str, max: usize) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= max
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// Keys that an operator excludes: one key, as `domain/*` all keys of a domain, or as `*` all keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyPattern(String);

/// Why a text is no pattern of keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is neither a key such as `team` or `example.com/team`, nor all keys of a domain as in `example.com/*`, nor all as in `*`"
)]
pub struct KeyPatternError(String);

impl KeyPattern {
    /// Checks and keeps `text`.
    ///
    /// # Errors
    /// When it is neither a key nor `domain/*` nor `*`.
    pub fn parse(text: &str) -> Result<Self, KeyPatternError> {
        let domain = text.strip_suffix("/*").filter(|domain| domain.len() < MAX_KEY_LEN);
        if text == "*" || domain.map_or_else(|| is_key(text), crate::names::is_subdomain) {
            return Ok(Self(text.to_owned()));
        }
        Err(KeyPatternError(text.chars().take(80).collect()))
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it means this key.
    #[must_use]
    pub fn matches(&self, key: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(domain) => key.starts_with(domain),
            None => key == self.0,
        }
    }
}

impl fmt::Display for KeyPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

impl FromStr for KeyPattern {
    type Err = KeyPatternError;
    fn from_str(text: &str) -> Result<Self, KeyPatternError> {
        Self::parse(text)
    }
}

impl Serialize for KeyPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(crate::text::ParseVisitor::new("a key, domain/*, or *"))
    }
}

/// What an operator excludes from copying, beside what is never copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// Of labels.
    pub labels: Vec<KeyPattern>,
    /// Of annotations.
    pub annotations: Vec<KeyPattern>,
}

impl Exclusions {
    /// The labels that may be copied, at most `max` of them, and how many could not be although nothing excludes them.
    #[must_use]
    pub fn labels(&self, all: &BTreeMap<String, String>, max: usize) -> (BTreeMap<String, String>, usize) {
        copied(all, &self.labels, max, is_label)
    }

    /// The same for annotations.
    #[must_use]
    pub fn annotations(&self, all: &BTreeMap<String, String>, max: usize) -> (BTreeMap<String, String>, usize) {
        copied(all, &self.annotations, max, is_annotation)
    }
}

/// In the order of keys, so that the same ones come through each time.
fn copied(
    all: &BTreeMap<String, String>,
    excluded: &[KeyPattern],
    max: usize,
    fits: fn(&str, &str) -> bool,
) -> (BTreeMap<String, String>, usize) {
    let wanted = all.iter().filter(|(key, _)| !is_owned(key) && !excluded.iter().any(|pattern| pattern.matches(key)));
    let (mut kept, mut left_out) = (BTreeMap::new(), 0);
    for (key, value) in wanted {
        if kept.len() < max && fits(key, value) {
            kept.insert(key.clone(), value.clone());
        } else {
            left_out += 1;
        }
    }
    (kept, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(keys: &[&str]) -> BTreeMap<String, String> {
        keys.iter().map(|key| ((*key).to_owned(), "x".to_owned())).collect()
    }

    #[test]
    fn what_commands_somebody_is_never_copied() {
        for key in [
            "kubectl.kubernetes.io/last-applied-configuration",
            "kubernetes.io/service-name",
            "service.beta.kubernetes.io/aws-load-balancer-type",
            "service.kubernetes.io/topology-mode",
            "endpointslice.kubernetes.io/managed-by",
            "app.kubernetes.io/managed-by",
            "app.kubernetes.io/instance",
            "external-dns.alpha.kubernetes.io/hostname",
            "multicluster.kubernetes.io/anything",
            "multicluster.x-k8s.io/anything",
            "meta.helm.sh/release-name",
            "helm.sh/chart",
            "argocd.argoproj.io/tracking-id",
            "kustomize.toolkit.fluxcd.io/name",
            "mirror.linkerd.io/exported",
            "mirror.linkspan.io/managed-by",
            "networking.istio.io/exportTo",
            "service.cilium.io/global",
            "getambassador.io/config",
            "prometheus.io/scrape",
            "tailscale.com/expose",
            "ad.datadoghq.com/service.checks",
            "io.cilium/global-service",
            "kube-vip.io/loadbalancerIPs",
            "co.elastic.logs/enabled",
        ] {
            assert!(is_owned(key), "{key}");
        }
        // No dot, no subdomain: somebody else's domain.
        assert!(!is_owned("notkubernetes.io/x"));
        for key in ["team", "example.com/team", "app.kubernetes.io/name", OPAQUE_PORTS_ANNOTATION, "kubernetes.io"] {
            assert!(!is_owned(key), "{key}");
        }
    }

    #[test]
    fn operators_exclude_keys_and_domains() {
        let patterns = ["team", "evil.example.com/*"].map(|text| KeyPattern::parse(text).unwrap());
        let exclusions = Exclusions { labels: patterns.to_vec(), annotations: Vec::new() };
        let all = map(&["team", "evil.example.com/a", "example.com/a", "tier", "helm.sh/chart"]);
        let (kept, left_out) = exclusions.labels(&all, 16);
        assert_eq!((kept.into_keys().collect::<Vec<_>>(), left_out), (vec!["example.com/a".into(), "tier".into()], 0));
        let (kept, left_out) = exclusions.annotations(&all, 2);
        assert_eq!((kept.len(), left_out), (2, 2), "the cap counts what is copied");
        let all_of_them = Exclusions { annotations: vec![KeyPattern::parse("*").unwrap()], ..exclusions };
        assert_eq!(all_of_them.annotations(&all, 16), (BTreeMap::new(), 0));
        for bad in ["", "**", "/*", "a b", "exa mple.com/*", "a/b/c", "-a", "Example.com/*"] {
            assert!(KeyPattern::parse(bad).unwrap_err().to_string().contains("example.com/*"), "{bad}");
        }
    }

    #[test]
    fn only_what_an_api_server_takes_is_copied() {
        for (key, value, label, annotation) in [
            ("team", "a-b_c.D", true, true),
            ("team", "", true, true),
            ("team", "-a", false, true),
            ("team", "a b", false, true),
            ("Team", &"a".repeat(64), false, true),
            ("team", "line\nline", false, true),
            ("team", "bell\u{7}", false, false),
            ("team", &"a".repeat(MAX_ANNOTATION_LEN + 1), false, false),
            ("Example.com/team", "a", false, false),
            ("example.com/", "a", false, false),
            ("/team", "a", false, false),
            ("a/b/c", "a", false, false),
            (&"a".repeat(64), "a", false, false),
            ("", "a", false, false),
        ] {
            assert_eq!((is_label(key, value), is_annotation(key, value)), (label, annotation), "{key}={value}");
        }
    }
}
