use proptest::prelude::*;

use super::*;

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  ports:
  - {name: http, port: 80, appProtocol: http}
";

/// A self-signed certificate that nobody uses.
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBJzCB2qADAgECAhRkPMwQFXCgBDvVZcKsBGqXN9KwVDAFBgMrZXAwDzENMAsG
A1UEAwwEdGVzdDAeFw0yNTAxMDEwMDAwMDBaFw0zNTAxMDEwMDAwMDBaMA8xDTAL
BgNVBAMMBHRlc3QwKjAFBgMrZXADIQDXWpgBgrEKt9VL/tPJZAc6DuFy89qmIyWv
-----END CERTIFICATE-----
";

/// `kind:name` of each object, or the error.
fn outcomes(text: &str) -> Vec<String> {
    parse(text, "shop.yaml")
        .into_iter()
        .map(|result| match result {
            Ok((object, line)) => format!("{line} {}", object.key()),
            Err(error) => error.to_string(),
        })
        .collect()
}

/// The one error of a text.
fn error(text: &str) -> String {
    match &outcomes(text)[..] {
        [error] => error.clone(),
        other => panic!("{other:?}"),
    }
}

fn site_error(text: &str) -> String {
    site_from_yaml(text, "site.yaml").unwrap_err().to_string()
}

fn indented(text: &str, by: usize) -> String {
    text.lines().map(|line| format!("{}{line}\n", " ".repeat(by))).collect()
}

#[test]
fn all_kinds_are_read() {
    let bundle = indented(CERTIFICATE, 4);
    let text = format!(
        "{SERVICE}---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels: {{kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:
- addresses: [10.0.0.7]
  conditions: {{ready: true}}
  hostname: web-0
---
apiVersion: multicluster.x-k8s.io/v1alpha1
kind: ServiceExport
metadata:
  name: web
  namespace: shop
  annotations: {{linkspan.io/proxy-protocol: v2}}
---
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {{name: db, namespace: shop}}
spec: {{exportedLabels: {{a: b}}}}
---
apiVersion: linkspan.io/v1alpha1
kind: Link
metadata: {{name: west}}
spec:
  trustDomain: west.linkspan.internal
  trustBundle: |
{bundle}  addresses: [west.example.com:4143]
  defaultPolicy: Deny
---
apiVersion: linkspan.io/v1alpha1
kind: ClusterTrafficPolicy
metadata: {{name: web, namespace: shop}}
spec:
  service: web
  tiers:
  - clusters: {{east: 90, west: 10}}
    minHealthyPercent: 50
  - clusters: {{dr: 1}}
---
apiVersion: linkspan.io/v1alpha1
kind: ExportPolicy
metadata: {{name: web}}
spec:
  services: [web]
  allow:
  - peers: [west]
    identityPrefixes: [spiffe://west.linkspan.internal/ns/shop]
    ports: [80]
    minimumAssurance: network
"
    );
    let results = parse(&text, "shop.yaml");
    let keys: Vec<_> = results.iter().map(|result| result.as_ref().unwrap().0.key().to_string()).collect();
    assert_eq!(
        keys,
        [
            "Service shop/web",
            "EndpointSlice shop/web-1",
            "ServiceExport shop/web",
            "ServiceExport shop/db",
            "Link west",
            "ClusterTrafficPolicy shop/web",
            "ExportPolicy default/web",
        ]
    );
    // What is written is read again.
    for (object, _) in results.into_iter().map(Result::unwrap) {
        let yaml = to_yaml(&object).unwrap();
        let again = parse(&yaml, "again.yaml").remove(0).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        assert_eq!(again, (object, 1), "{yaml}");
    }
}

#[test]
fn a_broken_document_costs_only_itself() {
    let text = format!("{SERVICE}---\na: [\n---\n# nothing\n---\nkind: Service\n---\n\"\n---\n{SERVICE}");
    let outcomes = outcomes(&text);
    assert_eq!(outcomes.len(), 5, "{outcomes:?}");
    assert_eq!(outcomes[0], "1 Service shop/web");
    assert!(outcomes[1].starts_with("shop.yaml:8:"), "{}", outcomes[1]);
    assert_eq!(outcomes[2], "shop.yaml:12:1: apiVersion: is missing: every resource begins with apiVersion and kind");
    assert!(outcomes[3].starts_with("shop.yaml:1"), "{}", outcomes[3]);
    assert_eq!(outcomes[4], "16 Service shop/web");
}

#[test]
fn empty_files_hold_nothing() {
    for text in ["", "\n\n", "# a comment\n", "---\n", "---\n---\n# x\n...\n", "\u{feff}"] {
        assert_eq!(outcomes(text), [""; 0], "{text:?}");
    }
}

#[test]
fn lists_are_read_item_by_item() {
    let text = format!("apiVersion: v1\nkind: List\nitems:\n- {}- kind: Nothing\n", indented(SERVICE, 2).trim_start());
    let outcomes = outcomes(&text);
    assert_eq!(outcomes[0], "4 Service shop/web");
    assert!(outcomes[1].contains("`Nothing` is not a kind"), "{outcomes:?}");
}

/// Each error names line, column, field, value and remedy.
#[test]
fn errors_name_place_field_value_and_remedy() {
    let service = |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n{spec}");
    let link =
        |spec: &str| format!("apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: west}}\nspec:\n{spec}");
    let policy = |spec: &str| {
        format!(
            "apiVersion: linkspan.io/v1alpha1\nkind: ClusterTrafficPolicy\nmetadata: {{name: web}}\nspec:\n  service: web\n{spec}"
        )
    };
    for (text, expected) in [
        (service("  prots: []\n"), "6:3: spec.prots: unknown field: did you mean `ports`?"),
        (
            service("  ports:\n  - port: 80\n    what: 1\n"),
            "8:5: spec.ports[0].what: unknown field: known here are `appProtocol`, `name`, `nodePort`, `port`, `protocol`, `targetPort`",
        ),
        (service("  ports:\n  - port: 70000\n"), "7:11: spec.ports[0].port: 70000 is not a port: use 1 to 65535"),
        (
            service("  ports:\n  - port: 99999999999\n"),
            "7:11: spec.ports[0].port: 99999999999 is out of range: expected -2147483648 to 2147483647",
        ),
        (
            service("  ports:\n  - port: \"80\"\n"),
            "7:11: spec.ports[0].port: found `80`, expected a number: leave out the quotes",
        ),
        (service("  ports:\n  - port: eighty\n"), "7:11: spec.ports[0].port: found `eighty`, expected a number"),
        (service("  ports: 80\n"), "6:10: spec.ports: found the number `80`, expected a list"),
        (
            service("  ports:\n  - port: 80\n  - port: 81\n"),
            "7:5: spec.ports[0].name: is missing: a Service with several ports names each of them",
        ),
        (
            service("  ports:\n  - {port: 80, name: a}\n  - {port: 80, name: b}\n"),
            "8:12: spec.ports[1].port: 80 TCP comes twice: list each port once",
        ),
        (
            service("  ports:\n  - {port: 80, protocol: tcp}\n"),
            "7:26: spec.ports[0].protocol: `tcp` is not one of TCP, UDP, SCTP",
        ),
        (
            SERVICE.replace("web", "12"),
            "3:18: metadata.name: found the number `12`, expected text: put it in quotes",
        ),
        (
            SERVICE.replace("web", "Web"),
            "3:18: metadata.name: service name `Web` is not valid: use lower-case letters, digits and `-`, with a letter or digit at both ends",
        ),
        (
            SERVICE.replace("metadata: {name: web, namespace: shop}\n", ""),
            "1:1: metadata.name: is missing: every resource has a name",
        ),
        (
            SERVICE.replace("name: web, ", ""),
            "3:11: metadata.name: is missing: every resource has a name",
        ),
        (
            SERVICE.replace("kind: Service", "kind: Deployment"),
            "2:7: kind: `Deployment` is not a kind that is read here: use Service, EndpointSlice, ServiceExport, Link, ClusterTrafficPolicy, ExportPolicy",
        ),
        (SERVICE.replace("kind: Service", "kind: Site"), "2:7: kind: a Site belongs into site.yaml, not among the manifests"),
        (SERVICE.replace("v1", "v2"), "1:13: apiVersion: `v2` is not known for Service: write v1"),
        (
            "apiVersion: v1\nkind: ServiceExport\n".to_owned(),
            "1:13: apiVersion: `v1` is not known for ServiceExport: write multicluster.x-k8s.io/v1alpha1 or multicluster.x-k8s.io/v1beta1",
        ),
        ("- a\n".to_owned(), "1:1: found a list, expected a resource with apiVersion, kind and metadata"),
        (
            link("  trustDomain: West\n"),
            "5:16: spec.trustDomain: `West`: a trust domain has only lower-case letters, digits, `.`, `-` and `_`: no port, no user, no escapes",
        ),
        (link("  trustDomain: west\n"), "5:3: spec.trustBundle: is missing, and has no default"),
        (
            link("  trustDomain: west\n  trustBundle: abc\n"),
            "6:16: spec.trustBundle: no `-----BEGIN CERTIFICATE-----` in it: put in the peer's root certificates as PEM",
        ),
        (
            link("  trustDomain: west\n  addresses: [a]\n"),
            "6:15: spec.addresses[0]: `a` is not an address: write host:port, such as east.example.com:4143 or [2001:db8::1]:4143",
        ),
        (link("  defaultPolicy: Maybe\n"), "5:18: spec.defaultPolicy: `Maybe` is not one of `Allow`, `Deny`"),
        (link("  trustdomain: west\n"), "5:3: spec.trustdomain: unknown field: did you mean `trustDomain`?"),
        (policy("  tiers: []\n"), "6:10: spec.tiers: 0 tiers: write 1 to 16"),
        (
            policy("  tiers:\n  - clusters: {east: 90, west: -1}\n"),
            "7:32: spec.tiers[0].clusters.west: -1 is out of range: expected 0 to 4294967295",
        ),
        (
            policy("  tiers:\n  - clusters: {east: 2.5}\n"),
            "7:22: spec.tiers[0].clusters.east: 2.5 is not a whole number: expected one from 0 to 4294967295",
        ),
        (
            policy("  tiers:\n  - clusters: {East: 1}\n"),
            "7:16: spec.tiers[0].clusters.East: cluster name `East` is not valid: use lower-case letters, digits and `-`, with a letter or digit at both ends",
        ),
        (
            policy("  tiers:\n  - clusters: {east: 1}\n    minHealthyPercent: 0\n"),
            "8:24: spec.tiers[0].minHealthyPercent: 0 is not a percentage from 1 to 100",
        ),
        (
            "apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata:\n  name: web\n  annotations:\n    linkspan.io/proxy-protocol: v1\n".to_owned(),
            "6:33: metadata.annotations[\"linkspan.io/proxy-protocol\"]: `v1` is not known: write v2, or leave the annotation out",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  name: b\n".to_owned(),
            "5:3: not readable as YAML: duplicate mapping key `name` is not allowed here",
        ),
    ] {
        assert_eq!(error(&text), format!("shop.yaml:{expected}"), "{text}");
    }
}

#[test]
fn endpoint_slices_hold_addresses_of_their_type() {
    let slice = |rest: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web\n  labels: {{kubernetes.io/service-name: web}}\n{rest}"
        )
    };
    for (rest, expected) in [
        ("addressType: FQDN\nendpoints: []\n", "6:14: addressType: `FQDN` is not served"),
        (
            "addressType: IPv4\nendpoints:\n- addresses: [example.com]\n",
            "8:15: endpoints[0].addresses[0]: `example.com` is not an IPv4 address",
        ),
        (
            "addressType: IPv4\nendpoints:\n- addresses: ['::1']\n",
            "8:15: endpoints[0].addresses[0]: `::1` is not an IPv4 address",
        ),
        ("addressType: IPv4\nendpoints:\n- addresses: []\n", "8:14: endpoints[0].addresses: is empty"),
        (
            "addressType: IPv4\nendpoints:\n- addresses: [10.0.0.1]\n  hostname: a.b\n",
            "9:13: endpoints[0].hostname: endpoint name `a.b` is not valid",
        ),
        ("addressType: IPv4\nendpoints: []\nports: [{port: 0}]\n", "8:16: ports[0].port: 0 is not a port"),
    ] {
        let error = error(&slice(rest));
        assert!(error.starts_with(&format!("shop.yaml:{expected}")), "{error}");
    }
    let unlabelled = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web}\naddressType: IPv4\nendpoints: []\n";
    let error = error(unlabelled);
    assert!(
        error.starts_with("shop.yaml:3:11: metadata.labels[\"kubernetes.io/service-name\"]: is missing"),
        "{error}"
    );
}

#[test]
fn nothing_counts_as_empty_where_kubernetes_has_it_so() {
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  labels:\n  creationTimestamp: null\nspec:\n  ports:\nstatus: {loadBalancer: {}}\n";
    assert_eq!(outcomes(text), ["1 Service default/web"]);
}

#[test]
fn what_kubectl_prints_is_read() {
    let text = "\
apiVersion: v1
kind: Service
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {\"apiVersion\":\"v1\"}
  creationTimestamp: 2026-01-02T03:04:05Z
  generation: 1
  managedFields:
  - apiVersion: v1
    fieldsType: FieldsV1
    fieldsV1:
      f:spec:
        f:ports:
          .: {}
          k:{\"port\":80,\"protocol\":\"TCP\"}: {f:port: {}, f:n: 1}
    manager: kubectl
    operation: Update
    time: \"2026-01-02T03:04:05Z\"
  name: web
  namespace: shop
  resourceVersion: \"42\"
  uid: 0c9c7d2e-0000-4000-8000-000000000000
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4]
  ports:
  - {name: http, port: 80, protocol: TCP, targetPort: 8080}
  - {name: grpc, port: 81, protocol: TCP, targetPort: grpc}
  selector: {app: web}
  sessionAffinity: None
  type: ClusterIP
status:
  loadBalancer: {}
";
    assert_eq!(outcomes(text), ["1 Service shop/web"]);
}

#[test]
fn yes_is_text() {
    let text = SERVICE.replace("appProtocol: http", "appProtocol: yes");
    assert_eq!(outcomes(&text), ["1 Service shop/web"]);
}

#[test]
fn cluster_objects_lose_their_namespace() {
    let text = format!(
        "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: west, namespace: shop}}\nspec:\n  trustDomain: west\n  trustBundle: |\n{}",
        indented(CERTIFICATE, 4)
    );
    assert_eq!(outcomes(&text), ["1 Link west"]);
}

#[test]
fn a_site_has_defaults_for_everything_but_its_name() {
    let site =
        site_from_yaml("apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {name: east}\n", "site.yaml").unwrap();
    assert_eq!(site, Site::new(crate::names::ClusterName::parse("east").unwrap()));
    assert_eq!(site.trust_domain().as_str(), "east.linkspan.internal");
    assert_eq!(site.spec.gateway.listen.to_string(), "0.0.0.0:4143");
    assert_eq!(site.spec.gateway.mtls_listen.unwrap().to_string(), "127.0.0.1:4193");
    assert_eq!(site.spec.dns.listen.to_string(), "127.0.0.1:5353");
    assert_eq!(site.spec.admin.listen.to_string(), "127.0.0.1:4191");
    assert_eq!(site.spec.mirror_addresses.to_string(), "127.80.0.0/12");
    assert_eq!(site.spec.gateway.drain_seconds, 10);
}

#[test]
fn a_full_site_is_read_and_written() {
    let text = "\
# comments are welcome
apiVersion: linkspan.io/v1alpha1
kind: Site
metadata: {name: east}
spec:
  trustDomain: east.example
  gateway:
    listen: '[::]:0'
    advertise: ['east.example.com:0', '[2001:db8::1]:4143']
    mtlsListen: null
    workers: 2
    drainSeconds: 3
  dns: {listen: '127.0.0.1:0'}
  admin: {listen: '127.0.0.1:0', controllerListen: '127.0.0.1:1'}
  mirrorAddresses: 127.90.0.0/16
  workloads:
  - {cidr: 10.0.0.0/24, namespace: shop, serviceAccount: web}
  stateDir: /var/lib/linkspan
  manifests: m
";
    let site = site_from_yaml(text, "site.yaml").unwrap();
    assert_eq!((site.spec.gateway.mtls_listen, site.spec.gateway.workers), (None, Some(2)));
    let written = to_yaml(&site).unwrap();
    assert_eq!(site_from_yaml(&written, "again.yaml").unwrap(), site, "{written}");
}

#[test]
fn a_section_with_all_lines_commented_out_is_a_default() {
    let text = "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {name: east}\nspec:\n  gateway:\n    # listen: 0.0.0.0:4143\n  workloads:\n";
    assert!(site_from_yaml(text, "site.yaml").is_ok());
}

#[test]
fn errors_in_a_site_say_what_to_write() {
    let site =
        |spec: &str| format!("apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {{name: east}}\nspec:\n{spec}");
    for (text, expected) in [
        (String::new(), "1:1: the file is empty: `linkspan site init` writes one"),
        ("kind: Site\n".to_owned(), "1:1: apiVersion: is missing: write `apiVersion: linkspan.io/v1alpha1`"),
        ("kind: Link\n".to_owned(), "1:7: kind: found `Link`, expected `Site`"),
        (site("  gatway: {}\n"), "5:3: spec.gatway: unknown field: did you mean `gateway`?"),
        (
            site("  gateway: {listen: 0.0.0.0}\n"),
            "5:21: spec.gateway.listen: `0.0.0.0`: write an IP address and port, such as 0.0.0.0:4143 or [::]:4143",
        ),
        (
            site("  mirrorAddresses: 127.80.0.0/40\n"),
            "5:20: spec.mirrorAddresses: `127.80.0.0/40`: write an address range, such as 10.0.0.0/24 or fd00::/64",
        ),
        (
            site("  mirrorAddresses: 127.80.0.0/30\n"),
            "5:20: spec.mirrorAddresses: 127.80.0.0/30 has fewer than 16 addresses: each mirrored service needs one",
        ),
        (
            site("  mirrorAddresses: 127.80.0.1/12\n"),
            "5:20: spec.mirrorAddresses: 127.80.0.1/12 has bits behind its prefix: write 127.80.0.0/12",
        ),
        (site("  gateway: {workers: 0}\n"), "5:22: spec.gateway.workers: write 1 to 256, or leave it out"),
        (
            site("  gateway: {workers: 70000}\n"),
            "5:22: spec.gateway.workers: 70000 is out of range: expected 0 to 65535",
        ),
        (
            site(
                "  workloads:\n  - {cidr: 10.0.0.0/24, namespace: a, serviceAccount: b}\n  - {cidr: 10.0.0.9/24, namespace: a, serviceAccount: c}\n",
            ),
            "7:12: spec.workloads[1].cidr: 10.0.0.9/24 is claimed by an earlier workload: name each range once",
        ),
        (
            format!("{}---\n{SERVICE}", site("")),
            "6:1: a second document: site.yaml holds one Site, everything else belongs into the manifests folder",
        ),
        ("a: [\n".to_owned(), "1:4: not readable as YAML: unclosed bracket '['"),
    ] {
        assert_eq!(site_error(&text), format!("site.yaml:{expected}"), "{text}");
    }
}

#[test]
fn what_grows_without_end_is_refused() {
    let deep = format!("a: {}{}", "[".repeat(5_000), "]".repeat(5_000));
    assert_eq!(outcomes(&deep).len(), 1);
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let references = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{references}]\n"));
    }
    let error = error(&bomb);
    assert!(error.contains("not readable as YAML"), "{error}");
    let long = " ".repeat(MAX_FILE_LEN + 1);
    assert!(self::error(&long).contains("split it"));
}

#[test]
fn keys_with_dots_are_shown_in_brackets() {
    let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  labels: {a.b/c: 1}\n";
    assert_eq!(
        error(text),
        "shop.yaml:5:19: metadata.labels[\"a.b/c\"]: found the number `1`, expected text: put it in quotes"
    );
}

proptest! {
    /// S-50: mutated objects are read or refused, and their neighbours are not touched.
    #[test]
    fn mutated_documents_cost_only_themselves(
        kind in 0..5_usize, damage in proptest::collection::vec((any::<prop::sample::Index>(), "[\\PC\n]"), 1..6),
    ) {
        let link = format!("apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {{name: west}}\nspec:\n  trustDomain: west\n  trustBundle: |\n{}", indented(CERTIFICATE, 4));
        let documents = [
            SERVICE,
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: a\n  labels: {kubernetes.io/service-name: web}\naddressType: IPv4\nports: [{name: http, port: 8080}]\nendpoints:\n- addresses: [10.0.0.7]\n",
            "apiVersion: multicluster.x-k8s.io/v1alpha1\nkind: ServiceExport\nmetadata: {name: web, namespace: shop}\n",
            "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: web}\nspec:\n  allow:\n  - {peers: [west], ports: [80], minimumAssurance: mtls}\n",
            &link,
        ];
        let mut text: Vec<char> = documents[kind].chars().collect();
        for (place, with) in damage {
            let place = place.index(text.len());
            text[place] = with.chars().next().unwrap_or('x');
        }
        let broken: String = text.into_iter().collect();
        let outcomes = outcomes(&format!("{SERVICE}---\n{broken}\n---\n{SERVICE}"));
        prop_assert_eq!(&outcomes[0], "1 Service shop/web");
        prop_assert!(outcomes.last().unwrap().ends_with(" Service shop/web"));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "(\\PC|[\n\t:{}\\[\\]&*!|>'\"%@,-]){0,200}") {
        drop(parse(&text, "any.yaml"));
        drop(site_from_yaml(&text, "any.yaml"));
    }
}

#[test]
fn a_cluster_is_read_with_its_defaults() {
    let text = "apiVersion: linkspan.io/v1alpha1\nkind: Cluster\nmetadata: {name: east}\nspec:\n  gateway:\n    \
                advertise: [\"east.example.com:4143\"]\n    ports: {first: 20000}\n";
    let cluster = cluster_from_yaml(text, "cluster.yaml").unwrap();
    assert_eq!((cluster.spec.gateway.ports.first, cluster.spec.gateway.ports.last), (20000, 32767));
    assert_eq!(cluster.spec.gateway.service.as_str(), "linkspan-gateway");
    // What is written back reads alike.
    assert_eq!(cluster_from_yaml(&to_yaml(&cluster).unwrap(), "again").unwrap(), cluster);
}

#[test]
fn errors_of_a_cluster_name_their_place() {
    let error = |text: &str| cluster_from_yaml(text, "cluster.yaml").unwrap_err().to_string();
    let begin = "apiVersion: linkspan.io/v1alpha1\nkind: Cluster\nmetadata: {name: east}\n";
    assert!(error("").contains("linkspan install"), "{}", error(""));
    let typo = error(&format!("{begin}spec:\n  gateway: {{servise: x}}\n"));
    assert!(typo.starts_with("cluster.yaml:5:13: spec.gateway.servise: "), "{typo}");
    let range = error(&format!("{begin}spec:\n  gateway:\n    ports: {{last: 60000}}\n"));
    assert!(range.starts_with("cluster.yaml:6:19: spec.gateway.ports.last: "), "{range}");
    let site = error("apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {name: east}\n");
    assert_eq!(site, "cluster.yaml:2:7: kind: found `Site`, expected `Cluster`");
    let manifest = parse(begin, "x.yaml").remove(0).unwrap_err().to_string();
    assert!(manifest.contains("cluster.yaml"), "{manifest}");
}
