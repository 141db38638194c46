//! `linkspan services`: what is mirrored here, from where, at which name and address, and whether it is healthy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use linkspan_proto::configuration::{Mirror, MirrorPort, PortTransport, Tier};
use linkspan_proto::names::{ClusterName, EndpointName, Namespace, ServiceKey};
use serde::Serialize;

use crate::args::{Format, ServicesArgs};
use crate::client::facts::{Backing, Facts, PortHealth, State};
use crate::client::occupant::Occupant;
use crate::client::source::{Of, Source};
use crate::client::status::{Condition, Status};
use crate::commands::Exit;
use crate::output;
use crate::output::table::{Cell, Table};

/// One mirrored name, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// The DNS name that clients use.
    name: String,
    /// The service in the clusters that export it: `namespace/name`.
    service: String,
    /// One endpoint of a headless service.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<EndpointName>,
    /// Whether clients are served on every port.
    healthy: bool,
    /// The worst state among its ports.
    state: State,
    /// Why, where it is not healthy.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    ports: Vec<Port>,
    /// What the controller found out about it.
    conditions: Vec<Condition>,
}

/// One port of a mirrored name.
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
    /// Where clients connect to; absent where the name stands for several addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    state: State,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    /// Another program that answers at this address.
    #[serde(skip_serializing_if = "Option::is_none")]
    occupant: Option<Occupant>,
    /// The clusters behind it, in order of preference.
    clusters: Vec<Backing>,
}

impl Port {
    fn of(port: &MirrorPort, address: Option<SocketAddr>, health: PortHealth) -> Self {
        Self {
            port: port.port,
            transport: port.transport,
            name: port.name.as_ref().map(ToString::to_string),
            app_protocol: port.app_protocol.clone(),
            address,
            state: health.state,
            message: health.message,
            occupant: health.occupant,
            clusters: health.backings,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(args: &ServicesArgs) -> anyhow::Result<Exit> {
    let source = Source::open(&args.place).await?;
    let facts = source.facts_with_addresses().await?;
    let statuses = source.statuses(Of::Mirrors).await?;
    let rows = rows(
        &facts,
        &statuses,
        args.namespace.as_ref().map(Namespace::as_str),
        args.cluster.as_ref().map(ClusterName::as_str),
    );
    match args.output.output {
        Format::Json => output::json::print(&rows)?,
        Format::Table | Format::Wide if rows.is_empty() => output::print(&nothing(&facts, &source))?,
        format => {
            table(&rows, format == Format::Wide).print()?;
            for remedy in remedies(&rows) {
                output::print(&format!("\nremedy: {}\n", output::safe(&remedy)))?;
            }
        }
    }
    Ok(Exit::Done)
}

/// How to clear the way for what cannot listen; one program often stands in the way of many names.
fn remedies(rows: &[Row]) -> BTreeSet<String> {
    let ports = rows.iter().flat_map(|row| &row.ports);
    ports.filter_map(|port| port.occupant.as_ref()).map(Occupant::remedy).collect()
}

/// Why there is nothing to show, and the next step.
fn nothing(facts: &Facts, source: &Source) -> String {
    let flags = source.flags();
    if facts.links.is_empty() {
        format!(
            "Nothing is mirrored: this {} has no links. Import the Link of a peer with `linkspan link import FILE {flags}`.\n",
            source.noun()
        )
    } else if !facts.mirrors.is_empty() {
        "Nothing of what is mirrored matches.\n".to_owned()
    } else if facts.links.values().any(|link| link.alive) {
        "Nothing is mirrored: no linked cluster exports a service. Export one there with a ServiceExport beside it.\n"
            .to_owned()
    } else {
        format!("Nothing is mirrored, and no link is alive. `linkspan check {flags}` says why.\n")
    }
}

fn rows(facts: &Facts, statuses: &[Status], namespace: Option<&str>, cluster: Option<&str>) -> Vec<Row> {
    let mirrors = facts.mirrors.iter().filter(|mirror| {
        let mut clusters = mirror.tiers.iter().flat_map(|tier| tier.clusters.keys());
        cluster.is_none_or(|name| clusters.any(|cluster| cluster.as_str() == name))
    });
    let by_hostname = ByHostname::new(statuses);
    let made: Vec<Row> = mirrors.map(|mirror| Row::of(mirror, facts, &by_hostname)).collect();
    let names: BTreeSet<&str> = made.iter().map(|row| row.name.as_str()).collect();
    let refused = statuses.iter().filter_map(Row::refused).filter(|row| {
        // Of a refused mirror only the name is known; that of one cluster's mirror ends in the cluster.
        cluster.is_none_or(|name| row.name.split('.').next().is_some_and(|first| first.ends_with(&format!("-{name}"))))
    });
    // In a cluster the gateways may know a name already that nobody has made yet.
    let refused: Vec<Row> = refused.filter(|row| !names.contains(row.name.as_str())).collect();
    let whole = statuses.iter().filter(|status| !names.contains(status.hostname()));
    let whole: Vec<Row> = whole
        .filter_map(|status| Row::headless(status, facts))
        .filter(|row| {
            let mut clusters = row.ports.iter().flat_map(|port| &port.clusters);
            cluster.is_none_or(|name| clusters.any(|backing| backing.cluster.as_str() == name))
        })
        .collect();
    let mut rows: Vec<Row> = made.into_iter().chain(refused).chain(whole).collect();
    rows.retain(|row| namespace.is_none_or(|name| row.service.split('/').next() == Some(name)));
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    rows
}

/// Statuses of mirrors by the name that clients use.
pub(super) struct ByHostname<'a>(HashMap<&'a str, &'a Status>);

impl<'a> ByHostname<'a> {
    pub(super) fn new(statuses: &'a [Status]) -> Self {
        Self(statuses.iter().map(|status| (status.hostname(), status)).collect())
    }

    /// An endpoint of a headless service shares the status of the service, in whose name its own ends: behind `HOST.`, or
    /// behind `HOST.CLUSTER.` in the clusterset.
    pub(super) fn of(&self, name: &str) -> Option<&Status> {
        let above = name.split_once('.').map(|(_, above)| above);
        let further = above.and_then(|above| above.split_once('.')).map(|(_, further)| further);
        [Some(name), above, further].into_iter().flatten().find_map(|name| self.0.get(name).copied())
    }
}

impl Row {
    fn of(mirror: &Mirror, facts: &Facts, statuses: &ByHostname<'_>) -> Self {
        let status = statuses.of(&mirror.name);
        let removed = status.and_then(Status::removal_delayed);
        let ports: Vec<Port> = mirror
            .ports
            .iter()
            .map(|port| {
                let mut health = facts.health(mirror, port);
                // The gateway knows it as it was: names and addresses stay.
                if let Some(removed) = removed.filter(|_| health.state.serves()) {
                    (health.state, health.message) = (State::NotExported, removed.message.clone());
                }
                Port::of(port, facts.address(mirror, port), health)
            })
            .collect();
        let worst = ports.iter().max_by_key(|port| port.state);
        let refused = status.and_then(|status| status.complaint("Accepted"));
        let (state, message) = match (refused, worst) {
            // Whatever the gateways would do with it: nobody finds it.
            (Some(complaint), _) => (State::Refused, complaint.sentence()),
            (None, Some(port)) => (port.state, port.message.clone()),
            (None, None) => (State::NotExported, "it has no ports".to_owned()),
        };
        Self {
            name: mirror.name.clone(),
            service: mirror.service.to_string(),
            endpoint: mirror.endpoint.clone(),
            healthy: refused.is_none() && ports.iter().all(|port| port.state.serves()),
            state,
            message,
            ports,
            conditions: status.map(|status| status.conditions().to_vec()).unwrap_or_default(),
        }
    }

    /// A headless service as a whole. The gateways know its endpoints alone, each by its own name, and nothing of one that has
    /// none; its name is there all the same.
    fn headless(status: &Status, facts: &Facts) -> Option<Self> {
        if status.complaint("Accepted").is_some() {
            return None;
        }
        let service = ServiceKey::parse(status.service()).ok()?;
        let below = format!(".{}", status.hostname());
        let endpoints = facts.mirrors.iter().filter(|mirror| mirror.endpoint.is_some() && mirror.service == service);
        let endpoints: Vec<&Mirror> = endpoints.filter(|mirror| mirror.name.ends_with(&below)).collect();
        let mut clusters: BTreeMap<ClusterName, u32> = BTreeMap::new();
        let mut ports: BTreeMap<(u16, PortTransport), MirrorPort> = BTreeMap::new();
        for mirror in &endpoints {
            clusters.extend(mirror.tiers.iter().flat_map(|tier| tier.clusters.clone()));
            ports.extend(mirror.ports.iter().map(|port| ((port.port, port.transport), port.clone())));
        }
        if endpoints.is_empty() {
            let is_all = status.hostname().ends_with(".svc.clusterset.local");
            let stands_for = |cluster: &ClusterName| is_all || facts.name_of(cluster, &service) == status.hostname();
            let exporters = facts.exporters_of(&service).filter(|cluster| stands_for(cluster)).cloned();
            let exporters: Vec<ClusterName> = exporters.collect();
            // Any other service is known to the gateways, or was not made.
            if !exporters.iter().all(|cluster| facts.has_none_ready(cluster, &service)) {
                return None;
            }
            let capacities = exporters.iter().filter_map(|it| facts.capacities.get(&(it.clone(), service.clone())));
            let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
            for (transport, port, _) in capacities.flat_map(|capacity| capacity.ports()) {
                let port = MirrorPort { listen: nowhere, port, transport, name: None, app_protocol: None };
                ports.insert((port.port, transport), port);
            }
            clusters.extend(exporters.into_iter().map(|cluster| (cluster, 1)));
        }
        if clusters.is_empty() || ports.is_empty() {
            return None;
        }
        let whole = Mirror {
            name: status.hostname().to_owned(),
            service,
            endpoint: None,
            ports: ports.into_values().collect(),
            tiers: vec![Tier { clusters, min_healthy_percent: 1 }],
        };
        let health = |port: &MirrorPort| facts.health_of_whole(&whole, port);
        let ports: Vec<Port> = whole.ports.iter().map(|port| Port::of(port, None, health(port))).collect();
        let worst = ports.iter().max_by_key(|port| port.state)?;
        Some(Self {
            service: whole.service.to_string(),
            endpoint: None,
            healthy: ports.iter().all(|port| port.state.serves()),
            state: worst.state,
            message: worst.message.clone(),
            ports,
            conditions: status.conditions().to_vec(),
            name: whole.name,
        })
    }

    /// A mirror that the controller did not make.
    fn refused(status: &Status) -> Option<Self> {
        let complaint = status.complaint("Accepted")?;
        Some(Self {
            name: status.hostname().to_owned(),
            service: status.service().to_owned(),
            endpoint: None,
            healthy: false,
            state: State::Refused,
            message: complaint.sentence(),
            ports: Vec::new(),
            conditions: status.conditions().to_vec(),
        })
    }

    /// Why it is not healthy, and what else should be known: that its catalogue is stale, clusters disagree, or its traffic
    /// policy is not in force.
    fn remarks(&self) -> String {
        let others = self.conditions.iter().filter(|condition| {
            matches!(condition.kind.as_str(), "Stale" | "Conflict" | "PolicyAccepted") && condition.complains()
        });
        let own = (!self.message.is_empty()).then(|| self.message.clone());
        let others = others.map(|condition| format!("{}: {}", condition.kind, condition.message));
        own.into_iter().chain(others).collect::<Vec<_>>().join("; ")
    }
}

fn table(rows: &[Row], wide: bool) -> Table {
    let mut table = if wide {
        Table::new(["NAME", "ADDRESS", "PORTS", "CLUSTERS", "READY", "STATE", "SERVICE", "MESSAGE"])
    } else {
        Table::new(["NAME", "ADDRESS", "PORTS", "CLUSTERS", "READY", "STATE"])
    };
    for row in rows {
        let mut addresses: Vec<String> =
            row.ports.iter().filter_map(|port| port.address).map(|address| address.ip().to_string()).collect();
        addresses.dedup();
        let ports: Vec<String> = row.ports.iter().map(shown_port).collect();
        let clusters = row.ports.first().map(|port| shown_clusters(&port.clusters)).unwrap_or_default();
        let remarks = row.remarks();
        let state = Cell::text(if remarks.is_empty() || wide {
            format!("{:?}", row.state)
        } else {
            format!("{:?}: {remarks}", row.state)
        });
        let mut cells = vec![
            Cell::text(&row.name),
            or_dash(addresses.join(",")),
            or_dash(ports.join(",")),
            or_dash(clusters),
            ready(&row.ports),
            match row.state {
                State::Healthy if remarks.is_empty() => state.good(),
                State::Healthy => state.warning(),
                State::Degraded => state.warning(),
                _ => state.bad(),
            },
        ];
        if wide {
            cells.push(Cell::text(&row.service));
            cells.push(or_dash(remarks));
        }
        table.row(cells);
    }
    table
}

fn or_dash(text: String) -> Cell {
    if text.is_empty() { Cell::none() } else { Cell::text(text) }
}

/// `8080/http`, `53/udp`, or the number alone where nothing is declared. A mirror has the service's own numbers.
fn shown_port(port: &Port) -> String {
    match &port.app_protocol {
        _ if !port.transport.is_tcp() => format!("{}/{}", port.port, port.transport.as_str()),
        Some(protocol) => format!("{}/{protocol}", port.port),
        None => port.port.to_string(),
    }
}

/// `west`, or with weights and tiers where there is a choice: `east:90,west:10|dr`.
fn shown_clusters(backings: &[Backing]) -> String {
    let mut shown = String::new();
    let mut tier = None;
    for backing in backings {
        let gap = match tier {
            None => "",
            Some(tier) if tier == backing.tier => ",",
            Some(_) => "|",
        };
        let alone = backings.iter().filter(|other| other.tier == backing.tier).count() == 1;
        shown.push_str(gap);
        shown.push_str(backing.cluster.as_str());
        if !alone || backing.weight == 0 {
            shown.push_str(&format!(":{}", backing.weight));
        }
        tier = Some(backing.tier);
    }
    shown
}

/// Ready endpoints over all clusters; of the port that has the fewest.
fn ready(ports: &[Port]) -> Cell {
    let sums = ports.iter().map(|port| port.clusters.iter().filter_map(|backing| backing.ready).sum::<u32>());
    sums.min().map_or_else(Cell::none, |sum| Cell::number(sum.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::facts::tests::facts;
    use crate::client::folder::Folder;

    #[test]
    fn people_read_a_table() {
        assert_eq!(
            table(&rows(&facts(), &[], None, None), false).render(false),
            "NAME                              ADDRESS     PORTS    CLUSTERS               READY  STATE\n\
             web-north.shop.svc.cluster.local  127.80.0.2  80/http  north                      3  LinkDown: the link to north is down\n\
             web-west.shop.svc.cluster.local   127.80.0.1  80/http  west                       2  Healthy\n\
             web.shop.svc.clusterset.local     127.80.0.3  80/http  east:90,west:10|north      6  Degraded: the link to north is down\n"
        );
        let wide = table(&rows(&facts(), &[], None, None), true).render(false);
        assert!(wide.lines().next().is_some_and(|line| line.ends_with("MESSAGE")), "{wide}");
    }

    #[test]
    fn rows_are_chosen_by_namespace_and_cluster() {
        assert_eq!(rows(&facts(), &[], Some("shop"), None).len(), 3);
        assert_eq!(rows(&facts(), &[], Some("other"), None).len(), 0);
        assert_eq!(rows(&facts(), &[], None, Some("west")).len(), 2);
    }

    #[test]
    fn programs_read_json() {
        let json = serde_json::to_value(rows(&facts(), &[], None, None)).expect("serialises");
        assert_eq!(json[0]["name"], "web-north.shop.svc.cluster.local");
        assert_eq!(json[0]["state"], "LinkDown");
        assert_eq!(json[0]["healthy"], false);
        assert_eq!(json[2]["healthy"], true, "degraded still serves");
        assert_eq!(json[2]["ports"][0]["clusters"][1]["weight"], 10);
        assert_eq!(json[1]["ports"][0]["address"], "127.80.0.1:80");
    }

    fn status(hostname: &str, condition: &str) -> Status {
        let text = format!(
            "kind: Mirror\nmetadata: {{name: x, namespace: shop}}\nstatus:\n  hostname: {hostname}\n  service: shop/web\n  \
             conditions: [{condition}]\n"
        );
        serde_saphyr::from_str(&text).expect("a status")
    }

    #[test]
    fn stale_refused_and_conflicting_mirrors_say_so() {
        let statuses = [
            status(
                "web-west.shop.svc.cluster.local",
                "{type: Stale, status: 'True', reason: NotConfirmed, message: not confirmed lately}",
            ),
            status(
                "db-west.shop.svc.cluster.local",
                "{type: Accepted, status: 'False', reason: NameTaken, message: there is a Service of this name}",
            ),
        ];
        let rows = rows(&facts(), &statuses, None, Some("west"));
        let page = table(&rows, false).render(false);
        let line = |name: &str| page.lines().find(|line| line.starts_with(name)).expect("a line").to_owned();
        assert!(line("web-west").ends_with("Healthy: Stale: not confirmed lately"), "{page}");
        assert!(
            line("db-west").ends_with("Refused: Accepted=False (NameTaken): there is a Service of this name"),
            "{page}"
        );
        let json = serde_json::to_value(&rows).expect("serialises");
        assert_eq!((&json[0]["state"], &json[0]["healthy"]), (&"Refused".into(), &false.into()));
    }

    /// In a cluster the gateways know it, and its namespace is not there.
    #[test]
    fn what_the_gateways_serve_and_nobody_made_is_one_refused_line() {
        let absent = "{type: Accepted, status: 'False', reason: NamespaceAbsent, message: no namespace shop}";
        let rows = rows(&facts(), &[status("web-west.shop.svc.cluster.local", absent)], None, Some("west"));
        let of: Vec<_> = rows.iter().filter(|row| row.name.starts_with("web-west")).collect();
        assert!(of.len() == 1 && !of[0].healthy && of[0].state == State::Refused);
        let page = table(&rows, false).render(false);
        assert!(page.contains("Refused: Accepted=False (NamespaceAbsent): no namespace shop"), "{page}");
    }

    #[test]
    fn what_a_peer_removed_is_not_healthy_while_its_name_stays() {
        let removed = "{type: Ready, status: 'False', reason: RemovalDelayed, message: west removed it}";
        let statuses = [status("web-west.shop.svc.cluster.local", removed)];
        let rows = rows(&facts(), &statuses, None, Some("west"));
        assert!(!rows[0].healthy);
        let page = table(&rows, false).render(false);
        assert!(page.contains("NotExported: west removed it"), "{page}");
    }

    #[test]
    fn an_endpoint_has_the_status_of_its_service() {
        let mut facts = facts();
        facts.mirrors.iter_mut().for_each(|mirror| mirror.name = "db-0.web-west.shop.svc.cluster.local".to_owned());
        let stale = "{type: Stale, status: 'True', reason: NotConfirmed, message: old}";
        let statuses =
            [status("web-west.shop.svc.cluster.local", stale), status("b-west.shop.svc.cluster.local", stale)];
        assert_eq!(rows(&facts, &statuses, None, None)[0].conditions.len(), 1);
        assert!(rows(&facts, &statuses[1..], None, None)[0].conditions.is_empty());
    }

    /// The gateways know its endpoints alone, and nothing of one that has none.
    #[test]
    fn a_headless_service_has_a_row_as_a_whole() {
        let mut facts = facts();
        for mirror in facts.mirrors.iter_mut().filter(|mirror| mirror.name.starts_with("web-west")) {
            mirror.name = "db-0.web-west.shop.svc.cluster.local".to_owned();
            mirror.endpoint = EndpointName::parse("db-0").ok();
        }
        let fine = "{type: Accepted, status: 'True', reason: Accepted, message: the mirror is made}";
        let statuses = [status("web-west.shop.svc.cluster.local", fine)];
        let of = |facts: &Facts| rows(facts, &statuses, None, Some("west"));
        let page = table(&of(&facts), false).render(false);
        let line = page.lines().find(|line| line.starts_with("web-west")).expect("a line");
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>()[1..],
            ["-", "80/http", "west", "2", "Healthy"],
            "{page}"
        );

        // None left: the name is there, and says so.
        facts.mirrors.retain(|mirror| mirror.endpoint.is_none());
        for capacity in facts.capacities.values_mut().filter(|capacity| capacity.cluster.as_str() == "west") {
            capacity.ready.values_mut().for_each(|ready| *ready = 0);
        }
        let page = table(&of(&facts), false).render(false);
        let line = page.lines().find(|line| line.starts_with("web-west")).expect("a line");
        assert!(line.ends_with("NoReadyEndpoints: no endpoint is ready in west"), "{page}");

        // Any other service that the gateways do not know has no row that says more than is known.
        facts.capacities.values_mut().for_each(|capacity| {
            capacity.ready.values_mut().for_each(|ready| *ready = 1);
        });
        assert!(!table(&of(&facts), false).render(false).contains("web-west"));
    }

    #[test]
    fn a_program_in_the_way_of_several_names_has_one_remedy() {
        let mut facts = facts();
        for listener in facts.listeners.values_mut() {
            listener.bound = false;
            listener.occupant =
                Some(Occupant { listen: "0.0.0.0:80".parse().expect("address"), uid: 0, process: None });
        }
        let rows = rows(&facts, &[], None, None);
        assert!(table(&rows, false).render(false).contains("NotListening: a program of the user with number 0"));
        assert_eq!(remedies(&rows).len(), 1);
        let json = serde_json::to_value(&rows).expect("serialises");
        assert_eq!(json[0]["ports"][0]["occupant"]["listen"], "0.0.0.0:80");
    }

    #[test]
    fn an_empty_list_names_the_next_step() {
        let mut facts = facts();
        facts.mirrors.clear();
        let site = Source::Site(Folder::new(std::path::Path::new("east")));
        assert!(nothing(&facts, &site).contains("ServiceExport"));
        facts.links.values_mut().for_each(|link| link.alive = false);
        assert!(nothing(&facts, &site).contains("linkspan check"));
        facts.links.clear();
        assert!(nothing(&facts, &site).contains("link import"));
    }
}
