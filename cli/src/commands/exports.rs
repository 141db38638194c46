//! `linkspan exports`: what is exported here, to whom, and whether it can be reached.

use std::collections::BTreeMap;

use linkspan_proto::configuration::{DefaultPolicy, Export, ExportRule, PortTransport};
use linkspan_proto::names::Namespace;
use serde::Serialize;

use crate::args::{ExportsArgs, Format};
use crate::client::facts::Facts;
use crate::client::source::{Of, Source};
use crate::client::status::{Condition, Status};
use crate::commands::Exit;
use crate::output;
use crate::output::table::{Cell, Table};

/// One export, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// `namespace/name`.
    service: String,
    /// Whether peers can reach it.
    exported: bool,
    ports: Vec<Port>,
    /// Who may call it.
    policy: Policy,
    /// Backends get a PROXY protocol v2 header.
    proxy_protocol: bool,
    conditions: Vec<Condition>,
}

/// One exported port.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    port: u16,
    #[serde(skip_serializing_if = "PortTransport::is_tcp")]
    transport: PortTransport,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    app_protocol: Option<String>,
    /// Ready endpoints, of how many.
    ready: usize,
    endpoints: usize,
}

/// Who may call an export.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    /// No ExportPolicy selects it: these peers may, by the defaultPolicy of their Links.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<BTreeMap<String, DefaultPolicy>>,
    /// Any one that matches allows; an empty list denies all.
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<Vec<ExportRule>>,
}

/// Runs the command.
pub(crate) async fn run(args: &ExportsArgs) -> anyhow::Result<Exit> {
    let source = Source::open(&args.place).await?;
    let (facts, statuses) = (source.facts().await?, source.statuses(Of::Exports).await?);
    let all = rows(&facts, statuses);
    let nothing = all.is_empty();
    let rows = within(all, args.namespace.as_ref().map(Namespace::as_str));
    match args.output.output {
        Format::Json => output::json::print(&rows)?,
        Format::Table | Format::Wide if rows.is_empty() && !nothing => {
            output::print("Nothing of what is exported matches.\n")?;
        }
        Format::Table | Format::Wide if rows.is_empty() => output::print(&format!(
            "Nothing is exported. A ServiceExport beside the Service exports it, {}:\n\n{}",
            source.manifests(),
            manifest("shop", "web")
        ))?,
        format => table(&rows, format == Format::Wide).print()?,
    }
    Ok(Exit::Done)
}

/// The manifest that exports a service.
pub(crate) fn manifest(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    )
}

fn rows(facts: &Facts, statuses: Vec<Status>) -> Vec<Row> {
    let mut rows: BTreeMap<String, Row> =
        facts.exports.values().map(|export| (export.service.to_string(), Row::of(export, facts))).collect();
    for status in statuses {
        let key = status.key();
        let row = rows.entry(key.clone()).or_insert_with(|| Row::refused(key));
        row.conditions = status.conditions().to_vec();
    }
    rows.into_values().collect()
}

fn within(rows: Vec<Row>, namespace: Option<&str>) -> Vec<Row> {
    let wanted = |row: &Row| namespace.is_none_or(|name| row.service.split('/').next() == Some(name));
    rows.into_iter().filter(wanted).collect()
}

impl Row {
    fn of(export: &Export, facts: &Facts) -> Self {
        let ports = export
            .ports
            .iter()
            .map(|port| Port {
                port: port.port,
                transport: port.transport,
                name: port.name.as_ref().map(ToString::to_string),
                app_protocol: port.app_protocol.clone(),
                ready: port.endpoints.iter().filter(|endpoint| endpoint.ready).count(),
                endpoints: port.endpoints.len(),
            })
            .collect();
        let default = export
            .rules
            .is_none()
            .then(|| facts.peers.values().map(|peer| (peer.cluster.to_string(), peer.default_policy)).collect());
        Self {
            service: export.service.to_string(),
            exported: true,
            ports,
            policy: Policy { default, rules: export.rules.clone() },
            proxy_protocol: export.proxy_protocol,
            conditions: Vec::new(),
        }
    }

    /// Wished for, and not granted: the conditions say why.
    fn refused(service: String) -> Self {
        let policy = Policy { default: None, rules: None };
        Self { service, exported: false, ports: Vec::new(), policy, proxy_protocol: false, conditions: Vec::new() }
    }

    /// One word, and why.
    fn state(&self) -> (&'static str, String) {
        let complaint = self.conditions.iter().find(|condition| condition.complains());
        match (self.exported, complaint) {
            (false, complaint) => ("NotExported", complaint.map(Condition::sentence).unwrap_or_default()),
            (true, Some(complaint)) => ("Conflict", complaint.sentence()),
            (true, None) if self.ports.is_empty() => ("NoPorts", "none of its ports is TCP or UDP".to_owned()),
            (true, None) if self.ports.iter().any(|port| port.ready == 0) => {
                ("NoReadyEndpoints", "no endpoint is ready".to_owned())
            }
            (true, None) => ("Exported", String::new()),
        }
    }
}

fn table(rows: &[Row], wide: bool) -> Table {
    let mut table = if wide {
        Table::new(["SERVICE", "PORTS", "READY", "ALLOWED", "STATE", "PROXY_PROTOCOL", "CONDITIONS"])
    } else {
        Table::new(["SERVICE", "PORTS", "READY", "ALLOWED", "STATE"])
    };
    for row in rows {
        let (word, why) = row.state();
        let state = Cell::text(if why.is_empty() || wide { word.to_owned() } else { format!("{word}: {why}") });
        let fewest = row.ports.iter().min_by_key(|port| port.ready);
        let mut cells = vec![
            Cell::text(&row.service),
            if row.ports.is_empty() { Cell::none() } else { Cell::text(shown_ports(&row.ports)) },
            fewest.map_or_else(Cell::none, |port| Cell::number(format!("{}/{}", port.ready, port.endpoints))),
            if row.exported { Cell::text(row.policy.shown(wide)) } else { Cell::none() },
            match word {
                "Exported" => state.good(),
                "NoReadyEndpoints" | "Conflict" => state.warning(),
                _ => state.bad(),
            },
        ];
        if wide {
            cells.push(if row.proxy_protocol { Cell::text("v2") } else { Cell::none() });
            let conditions: Vec<String> = row.conditions.iter().map(Condition::sentence).collect();
            cells.push(if conditions.is_empty() { Cell::none() } else { Cell::text(conditions.join("; ")) });
        }
        table.row(cells);
    }
    table
}

fn shown_ports(ports: &[Port]) -> String {
    let shown = |port: &Port| match &port.app_protocol {
        _ if !port.transport.is_tcp() => format!("{}/{}", port.port, port.transport.as_str()),
        Some(protocol) => format!("{}/{protocol}", port.port),
        None => port.port.to_string(),
    };
    ports.iter().map(shown).collect::<Vec<_>>().join(",")
}

impl Policy {
    fn shown(&self, wide: bool) -> String {
        match (&self.rules, &self.default) {
            (Some(rules), _) if rules.is_empty() => "nobody".to_owned(),
            (Some(rules), _) if wide => rules.iter().map(shown_rule).collect::<Vec<_>>().join(" or "),
            (Some(rules), _) => format!("by policy ({} rules)", rules.len()).replace("(1 rules)", "(1 rule)"),
            (None, Some(default)) if default.is_empty() => "no peer is linked".to_owned(),
            (None, Some(default)) if default.values().all(|policy| *policy == DefaultPolicy::Allow) => {
                "all peers".to_owned()
            }
            (None, Some(default)) => {
                let allowed = default.iter().filter(|(_, policy)| **policy == DefaultPolicy::Allow);
                let allowed: Vec<&str> = allowed.map(|(peer, _)| peer.as_str()).collect();
                if allowed.is_empty() { "nobody".to_owned() } else { allowed.join(",") }
            }
            (None, None) => String::new(),
        }
    }
}

fn shown_rule(rule: &ExportRule) -> String {
    let mut parts = Vec::new();
    if !rule.peers.is_empty() {
        parts.push(rule.peers.iter().map(|peer| peer.as_str()).collect::<Vec<_>>().join(","));
    }
    let exact = rule.identities.iter().map(ToString::to_string);
    let prefixes = rule.identity_prefixes.iter().map(|prefix| format!("{prefix}/*"));
    let identities: Vec<String> = exact.chain(prefixes).collect();
    if !identities.is_empty() {
        parts.push(identities.join(","));
    }
    if !rule.ports.is_empty() {
        parts.push(format!("ports {}", rule.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")));
    }
    parts.push(format!("assurance {} or better", format!("{:?}", rule.minimum_assurance).to_lowercase()));
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use linkspan_proto::identity::Assurance;

    use super::*;
    use crate::client::facts::tests::{cluster, facts, service};

    fn invalid() -> Status {
        serde_saphyr::from_str(
            "kind: ServiceExport\nmetadata: {name: api, namespace: shop}\nstatus:\n  conditions:\n    - {type: Valid, status: \
             'False', reason: NoService, message: there is no Service shop/api}\n",
        )
        .expect("a status")
    }

    #[test]
    fn people_read_a_table() {
        assert_eq!(
            table(&rows(&facts(), vec![invalid()]), false).render(false),
            "SERVICE   PORTS    READY  ALLOWED    STATE\n\
             shop/api  -        -      -          NotExported: Valid=False (NoService): there is no Service shop/api\n\
             shop/web  80/http    1/2  all peers  Exported\n"
        );
        let all = rows(&facts(), vec![invalid()]);
        assert!(within(all, Some("other")).is_empty());
    }

    #[test]
    fn who_may_call_is_told() {
        let mut facts = facts();
        facts.peers.get_mut(&cluster("north")).expect("peer").default_policy = DefaultPolicy::Deny;
        let shown = |facts: &Facts, wide| rows(facts, Vec::new())[0].policy.shown(wide);
        assert_eq!(shown(&facts, false), "west");
        let export = facts.exports.get_mut(&service("shop/web")).expect("export");
        export.rules = Some(Vec::new());
        assert_eq!(shown(&facts, false), "nobody");
        let rule = ExportRule {
            peers: vec![cluster("west")],
            ports: vec![80],
            minimum_assurance: Assurance::Mtls,
            ..ExportRule::default()
        };
        facts.exports.get_mut(&service("shop/web")).expect("export").rules = Some(vec![rule]);
        assert_eq!(shown(&facts, false), "by policy (1 rule)");
        assert_eq!(shown(&facts, true), "west ports 80 assurance mtls or better");
    }

    #[test]
    fn an_export_without_ready_endpoints_stands_out() {
        let mut facts = facts();
        let export = facts.exports.get_mut(&service("shop/web")).expect("export");
        export.ports[0].endpoints.iter_mut().for_each(|endpoint| endpoint.ready = false);
        assert_eq!(rows(&facts, Vec::new())[0].state().0, "NoReadyEndpoints");
    }

    #[test]
    fn programs_read_json() {
        let json = serde_json::to_value(rows(&facts(), vec![invalid()])).expect("serialises");
        assert_eq!(json[0]["exported"], false);
        assert_eq!(json[0]["conditions"][0]["type"], "Valid");
        assert_eq!(json[1]["ports"][0]["ready"], 1);
        assert_eq!(json[1]["policy"]["default"]["west"], "Allow");
    }
}
