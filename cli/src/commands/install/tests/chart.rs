//! The chart renders what `linkspan install` prints.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use super::{EAST, documents, installed, same};
use serde_json::Value;

/// The examples: file, values file, arguments of the same meaning.
const EXAMPLES: [(&str, Option<&str>, &str); 2] =
    [("default.yaml", None, ""), ("ha.yaml", Some("values-ha.yaml"), "--replicas 3 --external-traffic-policy Local")];

/// Values with the arguments of the same meaning.
const COMBINATIONS: [(&str, &str); 9] = [
    ("gateway.tcp=false", "--no-link-tcp"),
    ("stage=cluster,namespace.create=true", "--stage cluster"),
    ("stage=namespaced", "--stage namespaced"),
    ("imports.namespaces={shop}", "--import-namespace shop"),
    (
        "gateway.service.type=NodePort,gateway.service.nodePort=30143,gateway.advertise={east.example.com:4143}",
        "--service-type NodePort --node-port 30143 --address east.example.com:4143",
    ),
    (
        "gateway.service.type=ClusterIP,gateway.replicas=1,controller.replicas=1,crds.multiCluster=false,\
         networkPolicy.enabled=false",
        "--service-type ClusterIP --replicas 1 --controller-replicas 1 --no-multi-cluster-crds --no-network-policy",
    ),
    (
        "imports.namespaces={shop,pay},imports.endpointNetworks={10.244.0.0/16,fd00:1::/64},bind=::,\
         cluster.trustDomain=east.example,dns.clusterIP=10.96.0.11",
        "--import-namespace shop --import-namespace pay --endpoint-cidr 10.244.0.0/16 --endpoint-cidr fd00:1::/64 --bind :: \
         --trust-domain east.example --dns-cluster-ip 10.96.0.11",
    ),
    (
        "networkPolicy.peerNetworks={192.0.2.0/24},networkPolicy.apiServerNetworks={10.0.0.1/32},image.registry=r.example/l,\
         image.tag=v2,ca.secretName=root,gateway.service.annotations.a=b",
        "--peer-cidr 192.0.2.0/24 --api-server-cidr 10.0.0.1/32 --image r.example/l --image-tag v2 --ca-secret root \
         --service-annotation a=b",
    ),
    (
        "mirrors.excludedLabels={team,internal.example.com/*},mirrors.excludedAnnotations={internal.example.com/note},\
         mirrors.precedence={west,east}",
        "--exclude-label team --exclude-label internal.example.com/* --exclude-annotation internal.example.com/note \
         --precedence west --precedence east",
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn chart() -> PathBuf {
    root().join("deploy/charts/linkspan")
}

/// Helm itself: named, on the path, or built by `deploy/charts/build-helm`.
fn helm() -> Option<PathBuf> {
    let named = std::env::var_os("LINKSPAN_HELM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named
        .into_iter()
        .chain([root().join("target/tools/helm")])
        .chain(std::env::split_paths(&path).map(|folder| folder.join("helm")))
        .find(|candidate| candidate.is_file());
    if found.is_none() {
        let message = "no helm: deploy/charts/build-helm builds it; the chart itself is not rendered here";
        assert!(std::env::var_os("LINKSPAN_REQUIRE_KUBERNETES").is_none_or(|value| value != "1"), "{message}");
        eprintln!("NOT RUN: {message}");
    }
    found
}

fn render(helm: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Process::new(helm)
        .args(["template", "linkspan"])
        .arg(chart())
        .args(["--namespace", "linkspan", "--kube-version", "1.35.0"])
        .args(arguments)
        .output()
        .expect("helm runs");
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).expect("UTF-8"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Helm makes the namespace of a release itself.
fn without_namespace(objects: Vec<Value>) -> Vec<Value> {
    objects.into_iter().filter(|object| object["kind"] != "Namespace").collect()
}

/// Holds without Helm: what it rendered when the examples were written is what `linkspan install` prints now.
#[test]
fn examples_are_what_install_prints() {
    for (file, _, arguments) in EXAMPLES {
        let text = std::fs::read_to_string(chart().join("examples").join(file)).unwrap_or_default();
        same(file, documents(&text), without_namespace(installed(&format!("{EAST} {arguments}"))));
    }
}

#[test]
fn examples_are_what_the_chart_renders() {
    let Some(helm) = helm() else { return };
    for (file, values, _) in EXAMPLES {
        let values = values.map(|values| chart().join(values).display().to_string());
        let mut arguments = vec!["--set", "cluster.name=east"];
        arguments.extend(values.iter().flat_map(|values| ["--values", values]));
        let rendered = render(&helm, &arguments).unwrap();
        let path = chart().join("examples").join(file);
        if std::env::var_os("LINKSPAN_REGENERATE").is_some() {
            std::fs::write(&path, &rendered).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        let remedy = "run `LINKSPAN_REGENERATE=1 cargo test -p linkspan --bins chart` with helm";
        assert!(rendered == committed, "deploy/charts/linkspan/examples/{file} is stale: {remedy}");
    }
}

#[test]
fn the_chart_and_install_mean_the_same() {
    let Some(helm) = helm() else { return };
    for (values, arguments) in COMBINATIONS {
        let rendered = render(&helm, &["--set", "cluster.name=east", "--set", values]).unwrap();
        let base = if arguments.contains("--ca-secret") { "--cluster-name east" } else { EAST };
        let expected = installed(&format!("{base} {arguments}"));
        let created = values.contains("namespace.create=true");
        same(values, documents(&rendered), if created { expected } else { without_namespace(expected) });
    }
}

#[test]
fn wrong_values_are_refused_with_their_name() {
    let Some(helm) = helm() else { return };
    for (values, words) in [
        ("stage=namespaced", "cluster.name is missing"),
        ("cluster.name=East", "name"),
        ("cluster.name=east,gateway.replica=2", "replica"),
        ("cluster.name=east,controller.replicas=3", "replicas"),
        ("cluster.name=east,imports.namespaces={kube-system}", "namespaces"),
        ("cluster.name=east,gateway.advertise={east}", "advertise"),
        ("cluster.name=clusterset", "cluster.name: clusterset stands for all clusters"),
        ("cluster.name=east,cluster.trustDomain=..", "cluster.trustDomain: .. has an empty part"),
        ("cluster.name=east,mirrors.precedence={west,clusterset}", "mirrors.precedence: clusterset"),
        ("cluster.name=east,mirrors.excludedLabels={a/b/c}", "excludedLabels"),
        ("cluster.name=east,mirrors.excludedAnnotations={*/x}", "excludedAnnotations"),
        (
            "cluster.name=east,imports.namespaces={linkspan}",
            "imports.namespaces: gateways and controllers run in linkspan",
        ),
        (
            "cluster.name=east,gateway.advertise={0.0.0.0:4143}",
            "gateway.advertise: 0.0.0.0:4143 is nothing that a peer can dial",
        ),
        ("cluster.name=east,gateway.advertise={[::]:4143}", "gateway.advertise: [::]:4143"),
        ("cluster.name=east,gateway.advertise={foo:70000}", "gateway.advertise: foo:70000"),
        ("cluster.name=east,gateway.advertise={1.2.3:4143}", "gateway.advertise: 1.2.3:4143"),
        ("cluster.name=east,gateway.advertise={foo:1,foo:1}", "advertise"),
        (
            "cluster.name=east,gateway.service.type=ClusterIP,gateway.service.nodePort=30143",
            "gateway.service.nodePort: 30143",
        ),
        ("cluster.name=east,gateway.service.annotations.a b=x", "propertyName 'a b'"),
        ("cluster.name=east,dns.clusterIP=0.0.0.0", "dns.clusterIP: 0.0.0.0"),
        ("cluster.name=east,dns.clusterIP=10.96.0", "dns.clusterIP: 10.96.0 "),
        ("cluster.name=east,imports.endpointNetworks={999.0.0.1/44}", "imports.endpointNetworks: 999.0.0.1/44"),
        ("cluster.name=east,networkPolicy.peerNetworks={10.0.0.0/33}", "networkPolicy.peerNetworks: 10.0.0.0/33"),
        (
            "cluster.name=east,networkPolicy.apiServerNetworks={fd00::1::/64}",
            "networkPolicy.apiServerNetworks: fd00::1::/64",
        ),
        ("cluster.name=east,image.registry=https://x", "registry"),
        ("cluster.name=east,image.registry=reg/x:1.0", "registry"),
        ("cluster.name=east,image.tag=a/b", "tag"),
    ] {
        let error = render(&helm, &["--set", values]).unwrap_err();
        assert!(error.contains(words), "{values}: {error}");
    }
    let error = render(&helm, &["--set", "cluster.name=east", "--namespace", "default"]).unwrap_err();
    assert!(error.contains("the namespace default belongs to Kubernetes"), "{error}");
}

/// The patterns of the chart are its own: every form that `linkspan install` takes passes them.
#[test]
fn right_values_are_taken_in_every_form() {
    let Some(helm) = helm() else { return };
    for values in [
        "gateway.advertise={east.example.com:4143,EAST.example.com.:1,10.0.0.1:65535,[2001:db8::1]:4143,[::1]:1,[1:2:3:4:5:6:7:8]:9}",
        "imports.endpointNetworks={10.0.0.0/8,0.0.0.0/0,::/0,fd00:1::/64,fd00::1:2/128,1:2:3:4:5:6:7:8/128}",
        "dns.clusterIP=fd00:10:96::a",
        "dns.clusterIP=10.96.0.10",
        "mirrors.excludedLabels={*,team,example.com/*,example.com/Team_1}",
        "image.registry=localhost:5000/a/b-c_d,image.tag=_1.0-rc",
    ] {
        render(&helm, &["--set", "cluster.name=east", "--set", values])
            .unwrap_or_else(|error| panic!("{values}: {error}"));
    }
}

#[test]
fn versions_agree() {
    let chart = std::fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    for field in ["version", "appVersion"] {
        assert!(chart.contains(&format!("\n{field}: {}\n", env!("CARGO_PKG_VERSION"))), "{field} of the chart");
    }
}
