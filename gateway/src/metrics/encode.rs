//! The families as Prometheus reads them.

use std::fmt;
use std::sync::Arc;

use linkspan_runtime::metrics::prometheus_client::collector::Collector;
use linkspan_runtime::metrics::prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabel, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder,
};
use linkspan_runtime::metrics::prometheus_client::metrics::MetricType;
use linkspan_runtime::metrics::prometheus_client::metrics::counter::ConstCounter;

use super::series::UDP_MOVED;
use super::{Key, Metrics, Series};

/// All families that are kept by [`Key`]. A collector, and not one `Family` each: the series live in one place, and
/// each has all its figures together.
#[derive(Debug)]
pub(super) struct Families(pub(super) Metrics);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut all = self.0.series();
        all.sort_by(|one, two| one.key().cmp(two.key()));
        requests(&mut encoder, &all)?;
        responses(&mut encoder, &all)?;
        latency(&mut encoder, &all)?;
        connections(&mut encoder, &all)?;
        bytes(&mut encoder, &all)?;
        flows(&mut encoder, &all)?;
        datagrams(&mut encoder, &all)?;
        probes(&mut encoder, &all)
    }
}

fn requests(encoder: &mut DescriptorEncoder<'_>, all: &[Arc<Series>]) -> fmt::Result {
    let help = "HTTP requests that have ended";
    let mut family = encoder.encode_descriptor("request", help, None, MetricType::Counter)?;
    for series in all {
        let count = series.responses().map(|(_, count)| count).sum();
        counter(&mut family, series.key(), [], count)?;
    }
    Ok(())
}

fn responses(encoder: &mut DescriptorEncoder<'_>, all: &[Arc<Series>]) -> fmt::Result {
    let help = "HTTP requests that have ended, by how";
    let mut family = encoder.encode_descriptor("response", help, None, MetricType::Counter)?;
    for series in all {
        for (slot, count) in series.responses() {
            let labels = [
                ("classification", classification(slot.success)),
                ("status_code", slot.class),
                ("outcome", slot.outcome.label()),
            ];
            counter(&mut family, series.key(), labels, count)?;
        }
    }
    Ok(())
}

fn latency(encoder: &mut DescriptorEncoder<'_>, all: &[Arc<Series>]) -> fmt::Result {
    let help = "From the head of an HTTP request to the end of its response, in milliseconds";
    let mut family = encoder.encode_descriptor("response_latency_ms", help, None, MetricType::Histogram)?;
    for series in all.iter().filter(|series| series.responses().next().is_some()) {
        let labels = Labels { key: series.key(), more: [] };
        series.latency().encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn connections(encoder: &mut DescriptorEncoder<'_>, all: &[Arc<Series>]) -> fmt::Result {
    let help = "Connections that are not HTTP and have begun";
    let mut family = encoder.encode_descriptor("tcp_open", help, None, MetricType::Counter)?;
    for series in all {
        counter(&mut family, series.key(), [], series.tcp_opens())?;
    }
    let help = "Connections that are not HTTP and have ended, by how";
    let mut family = encoder.encode_descriptor("tcp_close", help, None, MetricType::Counter)?;
    for series in all {
        for (outcome, count) in series.tcp_closes() {
            let labels = [("classification", classification(outcome.is_success())), ("outcome", outcome.label())];
            counter(&mut family, series.key(), labels, count)?;
        }
    }
    Ok(())
}

fn bytes(encoder: &mut DescriptorEncoder<'_>, all: &[Arc<Series>]) -> fmt::Result {
    let help = "Bytes from callers: TCP payload and HTTP bodies";
    let mut family = encoder.encode_descriptor("tcp_read_bytes", help, None, MetricType::Counter)?;
    for series in all {
        counter(&mut family, series.key(), [], series.read_bytes())?;
    }
    let help = "Bytes to callers: TCP payload and HTTP bodies";
    let mut family = encoder.encode_descriptor("tcp_write_bytes", help, None, MetricType::Counter)?;
    for series in all {
        counter(&mut family, series.key(), [], series.write_bytes())?;
    }
    Ok(())
}

fn flows(encoder: &mut DescriptorEncoder<'_>, all: &[Arc<Series>]) -> fmt::Result {
    let help = "Flows of datagrams that have begun";
    let mut family = encoder.encode_descriptor("udp_open", help, None, MetricType::Counter)?;
    for series in with_flows(all) {
        counter(&mut family, series.key(), [], series.udp_opens())?;
    }
    let help = "Flows of datagrams that have ended, by how";
    let mut family = encoder.encode_descriptor("udp_close", help, None, MetricType::Counter)?;
    for series in all {
        for (outcome, count) in series.udp_closes() {
            let labels = [("classification", classification(outcome.is_success())), ("outcome", outcome.label())];
            counter(&mut family, series.key(), labels, count)?;
        }
    }
    Ok(())
}

fn datagrams(encoder: &mut DescriptorEncoder<'_>, all: &[Arc<Series>]) -> fmt::Result {
    let helps = [
        "Datagrams from callers that were carried on",
        "Datagrams to callers that were carried on",
        "Payload of datagrams from callers, in bytes",
        "Payload of datagrams to callers, in bytes",
    ];
    for (index, help) in helps.into_iter().enumerate() {
        let name = UDP_MOVED[index];
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for series in with_flows(all) {
            counter(&mut family, series.key(), [], series.udp_moved()[index])?;
        }
    }
    let help = "Datagrams that were not carried on, by why";
    let mut family = encoder.encode_descriptor("udp_lost", help, None, MetricType::Counter)?;
    for series in all {
        for (why, count) in series.udp_lost_by_reason() {
            counter(&mut family, series.key(), [("reason", why.label())], count)?;
        }
    }
    Ok(())
}

/// Most services have none, and need no figures about them.
fn with_flows(all: &[Arc<Series>]) -> impl Iterator<Item = &Arc<Series>> {
    all.iter().filter(|series| series.udp_opens() > 0)
}

fn probes(encoder: &mut DescriptorEncoder<'_>, all: &[Arc<Series>]) -> fmt::Result {
    let help = "Probes of linkspan check that have ended, by how; the other families leave them out";
    let mut family = encoder.encode_descriptor("service_probe", help, None, MetricType::Counter)?;
    for series in all {
        for (outcome, count) in series.probes() {
            let labels = [("classification", classification(outcome.is_success())), ("outcome", outcome.label())];
            counter(&mut family, series.key(), labels, count)?;
        }
    }
    Ok(())
}

fn counter<const N: usize>(
    family: &mut MetricEncoder<'_>,
    key: &Key,
    more: [(&'static str, &'static str); N],
    count: u64,
) -> fmt::Result {
    let labels = Labels { key, more };
    ConstCounter::new(count).encode(family.encode_family(&labels)?)
}

const fn classification(success: bool) -> &'static str {
    if success { "success" } else { "failure" }
}

/// A key's labels and those of one family.
struct Labels<'a, const N: usize> {
    key: &'a Key,
    more: [(&'static str, &'static str); N],
}

impl<const N: usize> EncodeLabelSet for Labels<'_, N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let service = self.key.service.as_ref();
        let labels = [
            ("direction", self.key.direction.label()),
            ("peer", self.key.peer.as_ref().map_or("", |peer| peer.as_str())),
            ("dst_namespace", service.map_or("", |service| service.namespace.as_str())),
            ("dst_service", service.map_or("", |service| service.name.as_str())),
        ];
        for label in labels {
            label.encode(encoder.encode_label())?;
        }
        ("dst_port", self.key.port).encode(encoder.encode_label())?;
        for label in self.more {
            label.encode(encoder.encode_label())?;
        }
        Ok(())
    }
}
