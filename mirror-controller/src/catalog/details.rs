//! What goes with an export beside its ports and endpoints: labels, annotations, how clients are spread, opaque ports. Pure.
//!
//! A mirror of one peer gets the Service's own labels and annotations, as Linkerd users expect. The import of all clusters
//! gets what the ServiceExport says and nothing of the Service, as the multi-cluster services API has it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use linkspan_proto::exchange::{
    Details, MAX_AFFINITY_SECONDS, MAX_ANNOTATIONS, MAX_LABELS, MAX_METADATA_LEN, MAX_NAME_LEN,
};
use linkspan_proto::metadata::{Exclusions, OPAQUE_PORTS_ANNOTATION};
use linkspan_proto::resources::ServiceExport;
use linkspan_runtime::text::Clean;

/// The `appProtocol` of an opaque port: its bytes are carried as they are.
pub(super) const OPAQUE: &str = "tcp";
/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// What the catalogue says, and how much of it does not fit.
pub(super) struct Carried {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) details: Details,
    left_out: usize,
}

impl Carried {
    /// What the export's report says of what is missing.
    pub(super) fn complaint(&self) -> Option<String> {
        (self.left_out > 0).then(|| {
            format!(
                "; {} labels or annotations are left out: of each kind {MAX_LABELS} fit, of all together {MAX_METADATA_LEN} bytes",
                self.left_out
            )
        })
    }
}

/// What of a Service and its ServiceExport peers are told.
pub(super) fn carried(
    service: &Service,
    spec: &ServiceSpec,
    export: Option<&ServiceExport>,
    exclusions: &Exclusions,
) -> Carried {
    let none = BTreeMap::new();
    let of_export = export.and_then(|export| export.spec.as_ref());
    let exported =
        |map: Option<&Option<BTreeMap<String, String>>>| map.and_then(Option::as_ref).unwrap_or(&none).clone();
    let labels = exclusions.labels(service.metadata.labels.as_ref().unwrap_or(&none), MAX_LABELS);
    let annotations = exclusions.annotations(service.metadata.annotations.as_ref().unwrap_or(&none), MAX_ANNOTATIONS);
    let exported_labels = exclusions.labels(&exported(of_export.map(|it| &it.exported_labels)), MAX_LABELS);
    let exported_annotations =
        exclusions.annotations(&exported(of_export.map(|it| &it.exported_annotations)), MAX_ANNOTATIONS);
    // What was asked for by the ServiceExport comes first, annotations of the Service last.
    let mut room = MAX_METADATA_LEN;
    let mut left_out = 0;
    let mut fitting = |(map, surplus): (BTreeMap<String, String>, usize)| {
        left_out += surplus;
        let mut kept = BTreeMap::new();
        for (key, value) in map {
            match room.checked_sub(key.len() + value.len()) {
                Some(rest) => {
                    room = rest;
                    kept.insert(key, value);
                }
                None => left_out += 1,
            }
        }
        kept
    };
    let exported_labels = fitting(exported_labels);
    let exported_annotations = fitting(exported_annotations);
    let labels = fitting(labels);
    let annotations = fitting(annotations);
    let distribution = spec.traffic_distribution.as_ref();
    let is_word = |text: &&String| {
        !text.is_empty() && text.len() <= MAX_NAME_LEN && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    let details = Details {
        annotations,
        exported_labels,
        exported_annotations,
        affinity_seconds: affinity(spec),
        local_traffic: spec.internal_traffic_policy.as_deref() == Some("Local"),
        traffic_distribution: distribution.filter(is_word).cloned(),
    };
    Carried { labels, details, left_out }
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let seconds = seconds.and_then(|seconds| u32::try_from(seconds).ok()).unwrap_or(AFFINITY_SECONDS);
    Some(seconds.clamp(1, MAX_AFFINITY_SECONDS))
}

/// Ports that Linkerd's annotation on a Service marks: numbers and ranges, separated by commas.
#[derive(Debug, Default, PartialEq)]
pub(super) struct OpaquePorts {
    ranges: Vec<(u16, u16)>,
    /// Parts that are neither.
    unknown: Vec<String>,
}

impl OpaquePorts {
    pub(super) fn of(service: &Service) -> Self {
        let annotations = service.metadata.annotations.as_ref();
        annotations
            .and_then(|all| all.get(OPAQUE_PORTS_ANNOTATION))
            .map_or_else(Self::default, |text| Self::parse(text))
    }

    fn parse(text: &str) -> Self {
        let mut ports = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
                (Ok(first), Ok(last)) if first > 0 && first <= last => ports.ranges.push((first, last)),
                _ => ports.unknown.push(Clean(part).to_string()),
            }
        }
        ports
    }

    pub(super) fn contains(&self, port: u16) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// What the export's report says of what is not understood.
    pub(super) fn complaint(&self) -> Option<String> {
        (!self.unknown.is_empty()).then(|| {
            format!(
                "; annotation {OPAQUE_PORTS_ANNOTATION}: `{}` is passed over: write ports and ranges, such as 3306,8000-8010",
                self.unknown.join("`, `")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn opaque_ports_are_numbers_and_ranges() {
        let ports = OpaquePorts::parse("3306, 8000-8010,,mysql,9-1,0,70000");
        for (port, opaque) in [(3306, true), (8000, true), (8010, true), (8011, false), (80, false)] {
            assert_eq!(ports.contains(port), opaque, "{port}");
        }
        assert!(ports.complaint().unwrap().contains("`mysql`, `9-1`, `0`, `70000`"));
        assert_eq!(OpaquePorts::parse("80").complaint(), None);
    }

    #[test]
    fn a_mirror_gets_what_the_service_says_and_an_import_what_the_export_says() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {
                "labels": {"team": "shop", "helm.sh/chart": "web-1", "example.com/secret": "x"},
                "annotations": {"docs": "see the wiki", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "spec": {
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10}},
                "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose",
            },
        }))
        .unwrap();
        let export: ServiceExport = serde_json::from_value(json!({
            "metadata": {"labels": {"mine": "x"}, "annotations": {"mine": "x"}},
            "spec": {"exportedLabels": {"tier": "gold", "mirror.linkspan.io/managed-by": "me"}, "exportedAnnotations": {"owner": "shop"}},
        }))
        .unwrap();
        let exclusions = Exclusions { labels: vec!["example.com/*".parse().unwrap()], annotations: Vec::new() };
        let carried = carried(&service, service.spec.as_ref().unwrap(), Some(&export), &exclusions);
        let keys = |map: &BTreeMap<String, String>| map.keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(keys(&carried.labels), "team");
        let details = &carried.details;
        assert_eq!(keys(&details.annotations), "docs");
        assert_eq!(
            (keys(&details.exported_labels), keys(&details.exported_annotations)),
            ("tier".into(), "owner".into())
        );
        assert_eq!((details.affinity_seconds, details.local_traffic), (Some(10), true));
        assert_eq!(details.traffic_distribution.as_deref(), Some("PreferClose"));
        assert_eq!(carried.complaint(), None, "what is excluded is not missed");
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let long = "x".repeat(1000);
        let annotations: BTreeMap<_, _> = (0..6).map(|index| (format!("a{index}"), long.clone())).collect();
        let service = Service {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                annotations: Some(annotations),
                ..Default::default()
            },
            ..Service::default()
        };
        let carried = carried(&service, &ServiceSpec::default(), None, &Exclusions::default());
        assert_eq!(carried.details.annotations.len(), 4);
        assert!(carried.complaint().unwrap().contains("2 labels or annotations"));
    }
}
