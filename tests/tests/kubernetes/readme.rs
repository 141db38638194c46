//! The commands of the README's section about Kubernetes, as written and in their order, on two clusters with nothing
//! installed: they link the two, a call crosses, and they leave nothing behind.

use std::collections::BTreeSet;
use std::fs;

use linkspan_tests::bed::api::path;
use linkspan_tests::bed::linkspan::documented_dns_lines;
use linkspan_tests::bed::{Cluster, Fresh, PATIENCE, Pod, shared};
use linkspan_tests::process::{Process, eventually};
use linkspan_tests::readme::{CLUSTERS, commands, dns_lines};
use linkspan_tests::servers;
use serde_json::json;

use super::kit::{dig, needs_kubernetes, service_export, web_service};

/// The commands that are still to be run.
struct Readme<'a> {
    fresh: &'a Fresh,
    left: Vec<String>,
}

impl Readme<'_> {
    /// The next command, which has to start like this.
    #[track_caller]
    fn take(&mut self, start: &str) -> String {
        let next = if self.left.is_empty() { "nothing".to_owned() } else { self.left.remove(0) };
        assert!(next.starts_with(start), "the README goes on with `{next}` where `{start}...` is next");
        next
    }

    /// Runs the next command as written; it must succeed.
    #[track_caller]
    fn run(&mut self, start: &str) -> String {
        let line = self.take(start);
        self.fresh.sh(&line)
    }
}

/// Web of the namespace `shop`, as somebody has it before Linkspan comes: nginx that says who calls. Port 80 is HTTP; port 9000
/// is declared opaque, so that its bytes cross as they are.
fn nginx(cluster: &Cluster) -> (Pod, Process) {
    cluster.namespace("shop");
    cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop, annotations: {config.linkerd.io/opaque-ports: \
         \"9000\"}}\nspec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: raw, port: 9000}]}\n",
    );
    let pod = cluster.starting_pod("shop", "web-0", "app: web", "default");
    let (root, name, address) = (pod.host.dir().display(), cluster.name(), pod.host.address());
    let listen = format!("listen {address}:8080; listen {address}:9000;");
    let config = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {root}/pid;\nerror_log {root}/error.log;\nevents {{}}\nhttp {{\n  \
         access_log off;\n  client_body_temp_path {root}/tmp;\n  proxy_temp_path {root}/p;\n  fastcgi_temp_path {root}/f;\n  \
         uwsgi_temp_path {root}/u;\n  scgi_temp_path {root}/s;\n  server {{ {listen} default_type text/plain;\n    \
         location / {{ return 200 'nginx of {name}, called by [$http_linkspan_source]\\n'; }}\n  }}\n}}\n"
    );
    let file = pod.host.dir().join("nginx.conf");
    fs::write(&file, config).expect("configuration is written");
    let process = pod.host.start("nginx", "nginx", &["-c", &file.display().to_string()]);
    servers::wait_listening(&pod.host, 8080);
    cluster.set_ready(&pod, true);
    (pod, process)
}

/// Everything that can be listed, but for events: `Service shop web`.
fn inventory(fresh: &Fresh, cluster: &Cluster) -> Option<BTreeSet<String>> {
    let (ok, text) = fresh.try_sh(&format!(
        "kinds=\"$(kubectl --context {name} api-resources --verbs=list,delete -o name | grep -v ^events | paste -sd,)\" && \
         kubectl --context {name} get \"$kinds\" -A --ignore-not-found --no-headers -o \
         custom-columns=KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name 2>&1",
        name = cluster.name()
    ));
    let lines = text.lines().filter(|line| !line.starts_with("Warning:"));
    ok.then(|| lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
}

/// Types an uninstallation, while those work who end pods.
pub(crate) fn uninstall(fresh: &Fresh, cluster: &Cluster, line: &str) {
    std::thread::scope(|scope| {
        let typed = scope.spawn(|| fresh.sh(line));
        cluster.end_with_deployments();
        eprintln!("left to the last line in {}: {:?}", cluster.name(), cluster.made_services());
        typed.join().expect("the line works");
    });
}

#[test]
fn the_commands_of_the_readme_link_two_clusters_and_leave_nothing_when_they_uninstall() {
    needs_kubernetes!();
    let bed = shared();
    let fresh = bed.fresh();
    let (east, west) = (&fresh.east, &fresh.west);
    let _web = nginx(west);
    let before = fresh.both().map(|cluster| inventory(&fresh, cluster).expect("an inventory"));
    let mut readme = Readme { fresh: &fresh, left: commands(|section| section == CLUSTERS) };

    readme.run("linkspan install --cluster-name east");
    readme.run("linkspan install --cluster-name west");
    std::thread::scope(|scope| {
        for cluster in fresh.both() {
            // What Deployments, kubelets and load balancers do.
            scope.spawn(move || {
                cluster.balance();
                cluster.start_replicas();
            });
        }
    });
    readme.run("linkspan check --context east --wait");
    readme.run("linkspan check --context west --wait");
    let exported = readme.run("linkspan link export --context west");
    assert_eq!(exported, "", "it went into the file");
    readme.run("linkspan link import west-link.yaml --context east");
    readme.run("linkspan link export --context east");
    readme.run("linkspan link import east-link.yaml --context west");

    dns_of_the_clusterset(&mut readme);
    readme.run("kubectl --context west apply -f deploy/examples/service-export.yaml");
    readme.run("kubectl --context east create namespace shop");
    readme.run("linkspan check --context east --wait");
    let services = readme.run("linkspan services --context east");
    assert!(services.contains("web-west.shop"), "{services}");
    call_across(&mut readme);

    // A mirror in west, so that something is there to go.
    east.apply(&web_service("shop", "own", ""));
    east.apply(&service_export("shop", "own", ""));
    west.wait(&path::service("shop", "own-east"), PATIENCE, |_| true);
    // The API server keeps an object for each ClusterIP.
    let own = east.get(&path::service("shop", "own")).expect("the Service")["spec"]["clusterIP"].clone();
    let own = format!(" {}", own.as_str().expect("a ClusterIP"));

    readme.run("linkspan link remove west --context east");
    eventually("nothing of the Link is left in east", PATIENCE, || {
        east.made().iter().all(|object| !object.ends_with(" west"))
    });
    // In west with its Link and its mirrors, in east without.
    let lines =
        [readme.take("linkspan uninstall"), readme.take("kubectl --context east delete services,endpointslices")];
    for (cluster, before) in fresh.both().into_iter().zip(before) {
        let lines = lines.clone().map(|line| line.replace("--context east", &format!("--context {}", cluster.name())));
        uninstall(&fresh, cluster, &lines[0]);
        fresh.sh(&lines[1]);
        let mut more = vec![String::new()];
        eventually(&format!("nothing of Linkspan is left in {}", cluster.name()), PATIENCE, || {
            let Some(now) = inventory(&fresh, cluster) else { return false };
            // In east the namespace is this test's, and what it put there.
            let tests = |line: &&String| cluster.name() == "east" && (line.contains(" shop") || line.ends_with(&own));
            let left: Vec<String> = now.difference(&before).filter(|line| !tests(line)).cloned().collect();
            assert!(before.is_subset(&now), "gone with it: {:?}", before.difference(&now));
            if left != more {
                eprintln!("left in {}: {left:?}", cluster.name());
            }
            more = left;
            more.is_empty()
        });
    }
    let shop = east.list("/api/v1/namespaces/shop/services");
    assert!(shop.len() == 1 && shop[0]["metadata"]["name"] == "own", "what is somebody's own stays: {shop:?}");
    assert!(readme.left.is_empty(), "commands that no test runs: {:?}", readme.left);
}

/// The lines for CoreDNS.
fn dns_of_the_clusterset(readme: &mut Readme<'_>) {
    let address = readme.run("kubectl --context east -n linkspan get service linkspan-dns");
    assert!(address.parse::<std::net::IpAddr>().is_ok(), "{address}");
    assert_eq!(dns_lines(), documented_dns_lines(), "README and deploy/kubernetes.md say the same");
    readme.run("kubectl --context east -n kube-system get configmap coredns -o yaml");
    let line = readme.take("linkspan install --coredns coredns.yaml");
    let said = readme.fresh.sh(&line.replace("ADDRESS", &address));
    assert!(said.contains("replaced"), "{said}");
    let map = readme.fresh.east.get("/api/v1/namespaces/kube-system/configmaps/coredns").expect("the configuration");
    let corefile = map["data"]["Corefile"].as_str().expect("a Corefile");
    assert!(corefile.ends_with(&format!("{}\n", dns_lines().replace("ADDRESS", &address))), "{corefile}");
    readme.fresh.east.sync_dns();
}

/// Names, ClusterIPs, HTTP and TCP, from a pod of east.
fn call_across(readme: &mut Readme<'_>) {
    let east = &readme.fresh.east;
    east.kubectl(&["-n", "shop", "create", "serviceaccount", "client"]);
    let client = east.pod("shop", "client", "app: client", "client");
    let mirror = east.wait(&path::service("shop", "web-west"), PATIENCE, |_| true);
    let import = east.wait(&path::import("shop", "web"), PATIENCE, |import| import["spec"]["ips"][0].is_string());
    for (name, address) in [
        ("web-west.shop.svc.cluster.local", &mirror["spec"]["clusterIP"]),
        ("web.shop.svc.clusterset.local", &import["spec"]["ips"][0]),
    ] {
        let curl = readme.take(&format!("curl http://{name}/"));
        let caller = "\"spiffe://east.linkspan.internal/ns/shop/sa/client\";cluster=\"east\";assurance=network";
        let mut answer = String::new();
        // The gateways learn of a new pod from the controller; one that began a moment ago is none that they know.
        eventually(&format!("{curl} gets an answer of west, which knows who called"), PATIENCE, || {
            let (ok, said) = client.host.try_sh(&curl.replace("curl ", "curl -sS --max-time 3 "));
            if said != answer {
                eprintln!("{curl}: {said}");
            }
            answer = said;
            ok && answer == format!("nginx of west, called by [{caller}]\n")
        });
        assert_eq!(json!(dig(&client, name, "A")), *address, "{name}");
        let raw = client.host.sh(&format!("curl -sS --max-time 3 http://{name}:9000/"));
        assert_eq!(raw, "nginx of west, called by []\n", "raw bytes cross as they are");
    }
}
