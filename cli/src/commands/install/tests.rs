mod chart;
mod files;

use std::collections::BTreeMap;

use clap::Parser;
use k8s_openapi::api::{admissionregistration, apps, core, networking, policy, rbac};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use linkspan_proto::manifest;
use linkspan_proto::names::{self, ClusterName, Namespace};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::departures as departures_of;
use super::*;
use crate::args::{Cli, Command, RESERVED_NAMESPACES};

/// Kind, namespace, name.
type Key = (String, String, String);

fn key(object: &Value) -> Key {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

fn options(line: &str) -> anyhow::Result<Options> {
    match Cli::try_parse_from(format!("linkspan install {line}").split_whitespace())?.command {
        Command::Install(args) => Options::resolve(&args),
        other => panic!("{other:?}"),
    }
}

/// What `linkspan install LINE` prints, but for the root.
fn installed(line: &str) -> Vec<Value> {
    let options = options(line).unwrap();
    let mut items = Vec::new();
    if options.stage != Stage::Namespaced {
        items.extend(cluster_stage(&options).unwrap());
    }
    if options.stage != Stage::Cluster {
        items.extend(namespaced_stage(&options));
    }
    items.into_iter().map(|item| item.object).collect()
}

/// The documents of a YAML text.
fn documents(text: &str) -> Vec<Value> {
    format!("\n{text}")
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str::<Value>(document).unwrap_or_else(|error| panic!("{error}\n{document}")))
        .filter(|document| !document.is_null())
        .collect()
}

/// By key; `cluster.yaml` as what it means, since the form of its text is free.
fn by_key(objects: Vec<Value>) -> BTreeMap<Key, Value> {
    let mut found = BTreeMap::new();
    for mut object in objects {
        if let Some(text) = object["data"]["cluster.yaml"].as_str() {
            let cluster = manifest::cluster_from_yaml(text, "cluster.yaml").unwrap();
            object["data"]["cluster.yaml"] = serde_json::to_value(cluster).unwrap();
        }
        let key = key(&object);
        assert!(found.insert(key.clone(), object).is_none(), "{key:?} comes twice");
    }
    found
}

#[track_caller]
fn same(what: &str, left: Vec<Value>, right: Vec<Value>) {
    let (left, right) = (by_key(left), by_key(right));
    assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>(), "{what}: which objects");
    for (key, object) in &left {
        let (left, right) = (serde_json::to_string_pretty(object).unwrap(), &right[key]);
        let right = serde_json::to_string_pretty(right).unwrap();
        let line = left.lines().zip(right.lines()).enumerate().find(|(_, (left, right))| left != right);
        assert!(left == right, "{what}: {key:?} differs, first at {line:?}");
    }
}

const EAST: &str = "--cluster-name east --ca-secret linkspan-ca";

/// Fields that Kubernetes does not know would be lost here.
#[test]
fn kubernetes_knows_every_field() {
    fn read<T: DeserializeOwned + Serialize>(object: &Value) {
        let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
        let mut again = serde_json::to_value(typed).unwrap();
        // The typed form writes an empty map for what has no fields.
        if again["metadata"].get("creationTimestamp") == Some(&Value::Null) {
            again["metadata"].as_object_mut().unwrap().remove("creationTimestamp");
        }
        assert_eq!(numbers(again), numbers(object.clone()));
    }
    /// `0` and `0.0` are one number to Kubernetes.
    fn numbers(value: Value) -> Value {
        match value {
            Value::Number(number) => json!(number.as_f64()),
            Value::Array(items) => items.into_iter().map(numbers).collect(),
            Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, numbers(value))).collect(),
            other => other,
        }
    }
    let all = "--service-type NodePort --node-port 30143 --service-annotation a=b --dns-cluster-ip 10.96.0.11 --bind :: \
               --import-namespace shop --endpoint-cidr 10.0.0.0/8 --peer-cidr 192.0.2.0/24 --api-server-cidr 10.0.0.1/32 \
               --address east.example.com:4143";
    for object in installed(&format!("{EAST} {all}")) {
        match object["kind"].as_str().unwrap() {
            "Namespace" => read::<core::v1::Namespace>(&object),
            "ServiceAccount" => read::<core::v1::ServiceAccount>(&object),
            "ConfigMap" => read::<core::v1::ConfigMap>(&object),
            "Service" => read::<core::v1::Service>(&object),
            "Deployment" => read::<apps::v1::Deployment>(&object),
            "PodDisruptionBudget" => read::<policy::v1::PodDisruptionBudget>(&object),
            "NetworkPolicy" => read::<networking::v1::NetworkPolicy>(&object),
            "Role" => read::<rbac::v1::Role>(&object),
            "RoleBinding" => read::<rbac::v1::RoleBinding>(&object),
            "ClusterRole" => read::<rbac::v1::ClusterRole>(&object),
            "ClusterRoleBinding" => read::<rbac::v1::ClusterRoleBinding>(&object),
            "CustomResourceDefinition" => read::<CustomResourceDefinition>(&object),
            "ValidatingAdmissionPolicy" => read::<admissionregistration::v1::ValidatingAdmissionPolicy>(&object),
            "ValidatingAdmissionPolicyBinding" => {
                read::<admissionregistration::v1::ValidatingAdmissionPolicyBinding>(&object);
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn what_is_printed_reads_as_what_was_meant() {
    let options = options(EAST).unwrap();
    let items = namespaced_stage(&options);
    let text = yaml(&items).unwrap();
    same("text", documents(&text), items.into_iter().map(|item| item.object).collect());
}

/// Security bar 5d: the whole list, and what is never in it.
#[test]
fn the_controller_has_the_rights_of_the_list_and_the_gateway_none() {
    let objects = installed(EAST);
    let bound: Vec<_> = objects.iter().filter(|object| object.get("subjects").is_some()).collect();
    for binding in &bound {
        assert_eq!(
            binding["subjects"],
            json!([{ "kind": "ServiceAccount", "name": CONTROLLER, "namespace": "linkspan" }])
        );
    }
    let mut rights = Vec::new();
    for binding in bound {
        let role = objects.iter().find(|object| {
            object["kind"] == binding["roleRef"]["kind"] && object["metadata"]["name"] == binding["roleRef"]["name"]
        });
        for rule in role.unwrap()["rules"].as_array().unwrap() {
            for resource in rule["resources"].as_array().unwrap() {
                for verb in rule["verbs"].as_array().unwrap() {
                    let text = |value: &Value| value.as_str().unwrap().to_owned();
                    rights.push([text(verb), text(&rule["apiGroups"][0]), text(resource)].join(" "));
                }
            }
        }
    }
    rights.sort();
    let expected = include_str!("tests/rights.txt");
    assert_eq!(rights.join("\n"), expected.trim_end(), "tests/rights.txt is the declared set");
    for right in &rights {
        for never in
            ["*", "secrets", "configmaps", "exec", "nodes", "roles", "bindings", "impersonate", "escalate", "webhook"]
        {
            assert!(!right.contains(never), "{right}");
        }
    }
}

#[test]
fn pods_have_no_privilege() {
    for object in installed(EAST).iter().filter(|object| object["kind"] == "Deployment") {
        let pod = &object["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for forbidden in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod.get(forbidden).is_none());
        }
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(volume.get("emptyDir").is_some() || volume.get("projected").is_some(), "{volume}");
        }
        for container in pod["containers"].as_array().unwrap() {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"], json!({ "drop": ["ALL"] }));
            for port in container["ports"].as_array().unwrap() {
                assert!(port.get("hostPort").is_none() && port["containerPort"].as_u64() > Some(1023), "{port}");
            }
            for probe in ["readinessProbe", "livenessProbe"] {
                assert!(container[probe]["httpGet"]["port"] == "admin", "{probe}");
            }
        }
        let text = pod.to_string();
        let gateway = object["metadata"]["name"] == GATEWAY;
        assert_eq!(text.contains("\"secret\""), !gateway, "the key is the controller's alone");
        assert_eq!(pod["automountServiceAccountToken"], !gateway);
        assert_eq!(text.contains("serviceAccountToken"), gateway);
    }
}

/// A root that is there is never replaced in silence: no key is printed, or the Secret is immutable.
#[test]
fn a_root_is_made_once() {
    assert!(options(EAST).unwrap().root().unwrap().is_none());
    let options = options("--cluster-name east").unwrap();
    let (first, second) = (options.root().unwrap().unwrap(), options.root().unwrap().unwrap());
    assert!(first.fresh && first.fingerprint != second.fingerprint);
    let [secret, root] = &first.items("linkspan", &options.ca_secret)[..] else { panic!("two objects") };
    assert!(secret.object["immutable"] == true && root.object["immutable"] == true);
    assert!(secret.object["stringData"]["root.key"].as_str().unwrap().contains("PRIVATE KEY"));
    assert_eq!(secret.object["stringData"]["root.pem"], root.object["data"]["root.pem"]);
    assert!(!root.object.to_string().contains("PRIVATE"));
}

#[test]
fn a_root_in_a_folder_is_printed_alike_each_time_and_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("ca");
    let domain = "east.linkspan.internal".parse().unwrap();
    let made = Root::create(&place, &domain).unwrap();
    assert!(Root::create(&place, &domain).is_err());
    let line = format!("--cluster-name east --ca-from {}", place.display());
    let print = || {
        let options = options(&line).unwrap();
        yaml(&options.root().unwrap().unwrap().items("linkspan", &options.ca_secret)).unwrap()
    };
    assert_eq!(print(), print());
    assert!(print().contains(&made.fingerprint));
    assert_eq!(documents(&print()).len(), 2);
    let other = options(&line.replace("east --", "west --")).unwrap().root().err().unwrap();
    assert!(format!("{other:#}").contains("--ca-from"), "{other:#}");
}

/// A cluster administrator applies one, the owner of the namespace the other, and nothing is missing or in both.
#[test]
fn stages_are_the_two_halves_of_all() {
    let all = by_key(installed(EAST));
    let granted = by_key(installed("--stage cluster"));
    let run = by_key(installed(&format!("{EAST} --stage namespaced")));
    assert_eq!(all.len(), granted.len() + run.len());
    assert!(run.keys().all(|(_, namespace, _)| namespace == "linkspan"));
    assert!(run.keys().all(|(kind, ..)| kind != "Namespace"));
    for (key, object) in granted.iter().chain(&run) {
        assert_eq!(&all[key], object);
    }
}

#[test]
fn uninstall_names_everything_that_install_made() {
    let departures = |line: &str| {
        let command = Cli::try_parse_from(format!("linkspan uninstall {line}").split_whitespace()).unwrap().command;
        let Command::Uninstall(args) = command else { panic!("{command:?}") };
        departures_of(&args).unwrap().into_iter().map(|item| key(&item.object)).collect::<Vec<_>>()
    };
    let gone = departures("--import-namespace shop");
    for line in [EAST.to_owned(), format!("{EAST} --import-namespace shop")] {
        for object in installed(&line) {
            assert!(gone.contains(&key(&object)), "{:?} stays", key(&object));
        }
    }
    assert!(departures("").iter().any(|(kind, _, name)| kind == "ClusterRoleBinding" && name == "linkspan-writer"));
    let place = |kind: &str, name: &str| gone.iter().position(|key| key.0 == kind && key.2 == name).unwrap();
    let deployment = place("Deployment", CONTROLLER);
    assert!(
        place("CustomResourceDefinition", "links.linkspan.io") < deployment,
        "mirrors go while the controller runs"
    );
    assert!(deployment < place("ClusterRole", "linkspan-writer"));
    assert!(deployment < place("ValidatingAdmissionPolicy", "linkspan-controller-services"), "bound to the end");
    assert!(place("Secret", "linkspan-ca") < place("Namespace", "linkspan"));
    let said = |line: &str| {
        let command = Cli::try_parse_from(format!("linkspan uninstall {line}").split_whitespace()).unwrap().command;
        let Command::Uninstall(args) = command else { panic!("{command:?}") };
        leftovers(&args)
    };
    let rest = "--all-namespaces -l mirror.linkspan.io/managed-by=mirror-controller\n";
    assert!(said("").ends_with(&format!("kubectl delete services,endpointslices,rolebindings {rest}")), "{}", said(""));
    // Without their definition imports are gone, and kubectl does not know them; with it they are not.
    let kept = said("--keep-multi-cluster-crds");
    assert!(kept.ends_with(&format!("services,endpointslices,rolebindings,serviceimports {rest}")), "{kept}");
    assert_eq!(kept, said("--keep-crds"));
    // Mirrors and rights are the whole cluster's.
    assert_eq!(said("--stage namespaced"), "");
    let kept = departures("--keep-ca --keep-multi-cluster-crds");
    let stays = ["Namespace", "Secret"];
    assert!(kept.iter().all(|(kind, _, name)| !stays.contains(&kind.as_str()) && !name.contains("multicluster")));
    assert!(departures("--keep-crds").iter().all(|(kind, ..)| kind != "CustomResourceDefinition"));
}

/// Whoever takes a second installation away takes the rights and the Links of the first, if nobody says so.
#[test]
fn uninstall_says_what_goes_besides() {
    let said = |line: &str| {
        let command = Cli::try_parse_from(format!("linkspan uninstall {line}").split_whitespace()).unwrap().command;
        let Command::Uninstall(args) = command else { panic!("{command:?}") };
        taken_along(&args)
    };
    assert_eq!(said("-n other --stage namespaced"), None);
    let all = said("-n other").unwrap();
    for words in
        ["every Link", "ServiceExport", "--keep-crds", "--keep-multi-cluster-crds", "namespace other alone", "rights"]
    {
        assert!(all.contains(words), "{words} in {all}");
    }
    assert!(!said("--keep-multi-cluster-crds").unwrap().contains("ServiceExport"));
    assert!(!said("--keep-crds").unwrap().contains("Link "));
}

#[test]
fn the_policies_cover_what_the_controller_itself_refuses() {
    for name in RESERVED_NAMESPACES.into_iter().chain(["linkspan"]) {
        assert!(linkspan_mirror_controller::reserved::is_reserved(&Namespace::parse(name).unwrap()), "{name}");
    }
    let objects = installed(&format!("{EAST} --endpoint-cidr 10.244.0.7/16 --endpoint-cidr fd00:1::/64 -n mesh"));
    let policies: Vec<_> = objects.iter().filter(|object| object["kind"] == "ValidatingAdmissionPolicy").collect();
    assert_eq!(policies.len(), 3);
    for policy in policies {
        let text = policy.to_string();
        assert!(
            text.contains("system:serviceaccount:mesh:linkspan-controller") && text.contains("'kube-system', 'mesh'")
        );
        if text.contains("addressType") {
            assert!(text.contains("cidr('10.244.0.0/16').containsIP(address) || cidr('fd00:1::/64')"), "{text}");
        }
        assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    }
}

/// `linkspan check` names the arguments of an installation by what it finds in the cluster.
#[test]
fn policies_tell_whose_they_are_and_which_networks_were_named() {
    let line = format!("{EAST} --endpoint-cidr 10.244.0.7/16 --endpoint-cidr fd00:1::/64 -n mesh");
    let objects = by_key(installed(&line));
    for name in admission::names() {
        let policy = &objects[&("ValidatingAdmissionPolicy".to_owned(), String::new(), name.clone())];
        assert_eq!(admission::installation(policy), Some("mesh"));
        let networks = if admission::holds_networks(&name) { vec!["10.244.0.0/16", "fd00:1::/64"] } else { vec![] };
        assert_eq!(admission::networks(policy), networks, "{name}");
    }
}

/// A slice for another Service than a mirror's would add endpoints to it.
#[test]
fn a_slice_is_for_a_service_that_is_a_mirrors() {
    let objects = by_key(installed(EAST));
    let key = ("ValidatingAdmissionPolicy".to_owned(), String::new(), "linkspan-controller-endpointslices".to_owned());
    let rules = objects[&key]["spec"]["validations"].to_string();
    for part in [
        "['kubernetes.io/service-name'].endsWith('-clusterset')",
        "['kubernetes.io/service-name'].endsWith('-' + object.metadata.labels['mirror.linkspan.io/cluster-name'])",
        "['kubernetes.io/service-name'].matches('-x[a-z2-7]{26}-')",
    ] {
        assert!(rules.contains(part), "{part} in {rules}");
    }
    // Those rules, said again, hold for every name that a mirror or an endpoint of it can have.
    let long_mark = |name: &str| {
        name.split('-').rev().skip(1).any(|part| {
            part.len() == 27
                && part.starts_with('x')
                && part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'2'..=b'7'))
        })
    };
    let marked = format!("a-x{}-b", "a".repeat(26));
    for cluster in ["west", "a-b", &"w".repeat(63), &"w".repeat(49), &marked, "x2345678ab-west", "clusterset"] {
        for service in ["web", "a-b", &"s".repeat(63), "web-x234567abcd", &marked] {
            let (name, cluster) = (service.parse().unwrap(), cluster.parse::<ClusterName>().unwrap());
            let (linked, endpoint) = (std::iter::once(cluster.clone()).collect(), service.parse().unwrap());
            let suffix = format!("-{cluster}");
            for of_cluster in [
                names::mirror_name(&name, &cluster, &linked),
                names::endpoint_name(&name, &endpoint, &cluster, &linked, true),
            ] {
                assert!(of_cluster.as_str().ends_with(&suffix) || long_mark(of_cluster.as_str()), "{of_cluster}");
            }
            let of_all = names::clusterset_endpoint_name(&name, &endpoint, &cluster);
            assert!(of_all.as_str().ends_with("-clusterset"), "{of_all}");
        }
    }
}

#[test]
fn imports_can_be_limited_to_namespaces() {
    let objects = by_key(installed(&format!("{EAST} --import-namespace shop --import-namespace pay")));
    let writer = |kind: &str, namespace: &str| (kind.to_owned(), namespace.to_owned(), "linkspan-writer".to_owned());
    // `kubectl apply` deletes nothing: an installation without those namespaces was there before, maybe.
    assert_eq!(objects[&writer("ClusterRoleBinding", "")]["subjects"], json!([]));
    for namespace in ["shop", "pay"] {
        let binding = &objects[&writer("RoleBinding", namespace)];
        assert_eq!(binding["roleRef"]["kind"], "ClusterRole");
        assert_eq!(binding["subjects"][0]["name"], CONTROLLER);
        // The line that takes what is left of mirrors takes it too.
        assert_eq!(binding["metadata"]["labels"][labels::MANAGED_BY], labels::MANAGED_BY_VALUE);
    }
    // The controller knows it, too: it tries nothing where it may not.
    let configuration = &objects[&("ConfigMap".to_owned(), "linkspan".to_owned(), CONFIGURATION.to_owned())];
    assert_eq!(configuration["data"]["cluster.yaml"]["spec"]["mirrors"]["namespaces"], json!(["shop", "pay"]));
}

/// A cache of each node has a link-local address, and link-local addresses are else shut.
#[test]
fn dns_is_reached_wherever_it_is() {
    let policies: Vec<_> = installed(EAST).into_iter().filter(|object| object["kind"] == "NetworkPolicy").collect();
    assert_eq!(policies.len(), 2);
    let dns = json!({ "ports": [{ "protocol": "UDP", "port": 53 }, { "protocol": "TCP", "port": 53 }] });
    for policy in policies {
        assert!(policy["spec"]["egress"].as_array().unwrap().contains(&dns), "{policy}");
    }
}

#[test]
fn one_gateway_has_no_budget_that_would_keep_its_node() {
    let budgets = |line: &str| {
        installed(&format!("{EAST} {line}")).iter().filter(|object| object["kind"] == "PodDisruptionBudget").count()
    };
    assert_eq!((budgets(""), budgets("--replicas 1"), budgets("--replicas 1 --controller-replicas 1")), (2, 1, 0));
}

#[test]
fn pods_change_with_their_configuration_only() {
    let hash = |line: &str| options(&format!("{EAST} {line}")).unwrap().configuration_hash();
    assert_eq!(hash(""), hash("--replicas 3"));
    assert_ne!(hash(""), hash("--address east.example.com:4143"));
    assert_eq!(hash("").len(), 64);
}

/// Each ends with exit code 2, and names the argument and its value.
#[test]
fn what_cannot_work_is_a_wrong_argument() {
    for (line, words) in [
        ("", &["--cluster-name"][..]),
        ("--stage namespaced", &["--cluster-name is missing", "--cluster-name east"]),
        ("--cluster-name East", &["--cluster-name", "East"]),
        ("--cluster-name clusterset", &["--cluster-name", "clusterset", "give the cluster another name"]),
        ("--cluster-name east --namespace kube-system", &["--namespace", "kube-system", "name another one"]),
        ("--cluster-name east --import-namespace default", &["--import-namespace", "default"]),
        ("--cluster-name east --import-namespace linkspan", &["--import-namespace linkspan", "leave it out"]),
        ("--cluster-name east --import-namespace a --import-namespace a", &["--import-namespace a comes twice"]),
        ("--cluster-name east --node-port 30143 --service-type ClusterIP", &["--node-port 30143", "--service-type"]),
        ("--cluster-name east --image a;b", &["--image", "a;b"]),
        ("--cluster-name east --image https://x", &["--image", "https://x", "without scheme"]),
        ("--cluster-name east --image reg/x:1.0", &["--image", "reg/x:1.0", "--image-tag"]),
        ("--cluster-name east --image reg/X", &["--image", "reg/X"]),
        ("--cluster-name east --image-tag a/b", &["--image-tag", "a/b"]),
        ("--cluster-name east --address 0.0.0.0:4143", &["--address", "0.0.0.0:4143", "host and port"]),
        ("--cluster-name east --address foo:0", &["--address", "foo:0", "host and port"]),
        ("--cluster-name east --address a:1 --address a:1", &["--address a:1 comes twice"]),
        ("--cluster-name east --bind 127.0.0.1", &["--bind", "127.0.0.1", "0.0.0.0, or ::"]),
        ("--cluster-name east --dns-cluster-ip 0.0.0.0", &["--dns-cluster-ip", "0.0.0.0", "service range"]),
        ("--cluster-name east --dns-cluster-ip fe80::1", &["--dns-cluster-ip", "fe80::1"]),
        ("--cluster-name east --controller-replicas 3", &["3"]),
        ("--cluster-name east --service-annotation a", &["KEY=VALUE"]),
        ("--cluster-name east --service-annotation foo|bar=x", &["--service-annotation", "foo|bar", "DOMAIN/NAME"]),
        ("--cluster-name east --ca-secret a --ca-from b", &["--ca-from"]),
        ("--cluster-name east --trust-domain ..", &["--trust-domain", "empty part"]),
        ("--cluster-name east --exclude-label a/b/c", &["a/b/c"]),
        ("--cluster-name east --precedence west --precedence west", &["--precedence west comes twice"]),
        ("--cluster-name east --precedence clusterset", &["--precedence", "clusterset"]),
    ] {
        let error = options(line).unwrap_err();
        let refused = error.downcast_ref::<clap::Error>().map(clap::Error::exit_code);
        assert!(refused == Some(2) || error.is::<crate::commands::WrongArguments>(), "{line}: {error:#}");
        let error = format!("{error:#}");
        for words in words {
            assert!(error.contains(words), "{line}: `{words}` is not in: {error}");
        }
    }
}

#[test]
fn places_of_images_are_taken_as_they_are_written() {
    for (image, expected) in [
        ("registry.example.com/linkspan", "registry.example.com/linkspan"),
        ("localhost:5000", "localhost:5000"),
        ("localhost:5000/a/b-c_d/", "localhost:5000/a/b-c_d"),
        ("Linkspan", "Linkspan"),
    ] {
        assert_eq!(options(&format!("{EAST} --image {image}")).unwrap().image, expected);
    }
}
