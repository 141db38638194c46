//! The caller's identity reaches the backend, and nobody can forge it.

use linkspan_tests::manifests::Service;
use linkspan_tests::process::eventually;
use linkspan_tests::servers;
use linkspan_tests::site::{PATIENCE, Site};
use serde_json::Value;

use super::kit::{linked, needs_namespaces};

const WEB: &str = "web-west.shop.svc.cluster.local";

/// All values of a header in what `headers_server.py` answered.
fn values(answer: &str, header: &str) -> Vec<String> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_else(|e| panic!("{e}: {answer}"));
    answer["headers"]
        .as_array()
        .expect("header list")
        .iter()
        .filter(|pair| pair[0].as_str().is_some_and(|name| name.eq_ignore_ascii_case(header)))
        .map(|pair| pair[1].as_str().unwrap_or_default().to_owned())
        .collect()
}

fn web(west: &Site) -> linkspan_tests::process::Process {
    let server = servers::python(&west.host, "headers_server.py", 8090);
    west.apply("web.yaml", &Service::new("shop", "web").port("http", 8090, Some("http")).yaml());
    server
}

#[test]
fn http_backends_see_who_called() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _web = web(west);
    east.wait_resolves(WEB);
    for (client, identity) in [
        ("127.0.1.5", "spiffe://east.linkspan.internal/ns/shop/sa/frontend"),
        ("127.0.2.7", "spiffe://east.linkspan.internal/ns/ops/sa/robot"),
    ] {
        let answer = east.host.sh(&format!("curl -fsS --interface {client} http://{WEB}:8090/"));
        let source = values(&answer, "linkspan-source");
        assert_eq!(source.len(), 1, "{answer}");
        assert!(source[0].contains(identity) && source[0].contains("assurance=network"), "{source:?}");
        assert!(source[0].contains("cluster=\"east\""), "{source:?}");
        let xfcc = values(&answer, "x-forwarded-client-cert");
        assert_eq!(xfcc.len(), 1, "{answer}");
        assert!(xfcc[0].contains(&format!("URI={identity}")), "{xfcc:?}");
    }
    // A client of no known range: only the gateway is known.
    let answer = east.host.sh(&format!("curl -fsS --interface 127.0.9.9 http://{WEB}:8090/"));
    assert!(values(&answer, "linkspan-source")[0].contains("assurance=gateway"), "{answer}");
}

#[test]
fn an_mtls_client_is_known_by_its_own_certificate() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _web = web(west);
    east.wait_resolves(WEB);
    let svid = east.host.dir().join("svid").display().to_string();
    east.linkspan(&["identity", "issue", "--namespace", "bank", "--service-account", "teller", "--out", &svid]);
    let curl = format!(
        "curl -sS --max-time 5 --cert {svid}/tls.crt --key {svid}/tls.key --cacert {svid}/ca.crt \
         --connect-to {WEB}:443:127.0.0.1:4193 https://{WEB}:443/"
    );
    // The certificate of the mTLS port follows the mirrored namespaces.
    let mut answer = String::new();
    eventually("the mTLS port serves the mirrored name", PATIENCE, || {
        let (ok, text) = east.host.try_sh(&curl);
        answer = text;
        ok && answer.starts_with('{')
    });
    let source = values(&answer, "linkspan-source");
    assert!(source[0].contains("spiffe://east.linkspan.internal/ns/bank/sa/teller"), "{source:?}");
    assert!(source[0].contains("assurance=mtls"), "{source:?}");
    // Without a certificate, and with one of another trust domain, nobody gets in.
    assert!(
        !east
            .host
            .try_sh(&format!("curl -sS --max-time 5 -k --connect-to {WEB}:443:127.0.0.1:4193 https://{WEB}:443/"))
            .0
    );
    let foreign = west.host.dir().join("foreign");
    let out = foreign.display().to_string();
    west.linkspan(&["identity", "issue", "--namespace", "bank", "--service-account", "teller", "--out", &out]);
    let foreign = curl
        .replace(&format!("{svid}/tls.crt"), &foreign.join("tls.crt").display().to_string())
        .replace(&format!("{svid}/tls.key"), &foreign.join("tls.key").display().to_string());
    assert!(!east.host.try_sh(&foreign).0);
}

#[test]
fn tcp_backends_see_who_called_by_proxy_protocol() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = servers::python(&west.host, "proxy_protocol_server.py", 7100);
    west.apply("who.yaml", &Service::new("shop", "who").port("tcp", 7100, Some("tcp")).proxy_protocol().yaml());
    let name = "who-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    for (client, identity) in [
        ("127.0.1.5", "spiffe://east.linkspan.internal/ns/shop/sa/frontend"),
        ("127.0.2.7", "spiffe://east.linkspan.internal/ns/ops/sa/robot"),
    ] {
        let script = format!(
            "import socket; c=socket.create_connection(('{name}',7100),source_address=('{client}',0)); \
             c.shutdown(socket.SHUT_WR); d=b''\nwhile b:=c.recv(9999): d+=b\nprint(d.decode())"
        );
        let answer: Value = serde_json::from_str(&east.host.sh(&format!("python3 -c \"{script}\""))).expect("JSON");
        assert_eq!(answer["command"], 0x21, "{answer}");
        assert_eq!(answer["client"], client, "{answer}");
        assert_eq!(answer["crc"], true, "{answer}");
        assert_eq!(answer["tlvs"]["e0"], identity, "{answer}");
        assert_eq!(answer["tlvs"]["e1"], "east", "{answer}");
        assert_eq!(answer["tlvs"]["e2"], "network", "{answer}");
    }
}

#[test]
fn an_mtls_client_is_known_to_tcp_backends_by_proxy_protocol() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = servers::python(&west.host, "proxy_protocol_server.py", 7100);
    west.apply("who.yaml", &Service::new("shop", "who").port("tcp", 7100, Some("tcp")).proxy_protocol().yaml());
    let name = "who-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let svid = east.host.dir().join("svid").display().to_string();
    east.linkspan(&["identity", "issue", "--namespace", "bank", "--service-account", "teller", "--out", &svid]);
    // From an address that is another workload's: the certificate is stronger.
    let client = format!(
        "import socket,ssl\nt=ssl.create_default_context(cafile='{svid}/ca.crt'); t.load_cert_chain('{svid}/tls.crt','{svid}/tls.key')\n\
         c=t.wrap_socket(socket.create_connection(('127.0.0.1',4193),source_address=('127.0.1.5',0)),server_hostname='{name}')\n\
         d=b''\nwhile b:=c.recv(9999): d+=b\nprint(d.decode())"
    );
    let mut answer = String::new();
    eventually("the mTLS port serves the mirrored name", PATIENCE, || {
        let (ok, text) = east.host.try_sh(&format!("python3 -c \"{client}\""));
        answer = text;
        ok && answer.starts_with('{')
    });
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!(answer["command"], 0x21, "{answer}");
    assert_eq!(answer["client"], "127.0.1.5", "{answer}");
    assert_eq!(answer["crc"], true, "{answer}");
    assert_eq!(answer["tlvs"]["e0"], "spiffe://east.linkspan.internal/ns/bank/sa/teller", "{answer}");
    assert_eq!(answer["tlvs"]["e1"], "east", "{answer}");
    assert_eq!(answer["tlvs"]["e2"], "mtls", "{answer}");
}

/// S-01, S-02: the forms in which clients try to pass an identity off as asserted.
fn forged(canary: &str) -> [String; 12] {
    let long = "x".repeat(8000);
    [
        format!("linkspan-source: {canary}"),
        format!("LinkSpan-SOURCE: {canary}"),
        format!("linkspan_source: {canary}"),
        format!("x-forwarded-client-cert: By=x;URI={canary}"),
        format!("X_Forwarded_Client_Cert: URI={canary}"),
        format!("forwarded: for={canary}"),
        format!("client-cert: :{canary}:"),
        format!("Client-Cert-Chain: :{canary}:"),
        format!("l5d-client-id: {canary}"),
        format!("L5D-CLIENT-ID: {canary}"),
        format!("x-forwarded-client-cert: {canary}{long}"),
        format!("linkspan-source:   {canary}  "),
    ]
}

#[test]
fn s01_forged_identity_headers_never_arrive() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _web = web(west);
    east.wait_resolves(WEB);
    let canary = "forged-by-the-client";
    let forms = forged(canary);
    for form in &forms {
        let answer = east.host.sh(&format!("curl -fsS -H '{form}' -H 'linkspan-source: {canary}' http://{WEB}:8090/"));
        assert!(!answer.contains(canary), "{form} arrived: {answer}");
        assert_eq!(values(&answer, "linkspan-source").len(), 1, "{answer}");
    }
    // A hop-by-hop nomination cannot remove what the gateway asserts (S-02).
    for nomination in ["linkspan-source", "X-Forwarded-Client-Cert", "close, Linkspan-Source"] {
        let answer = east.host.sh(&format!("curl -fsS -H 'Connection: {nomination}' http://{WEB}:8090/"));
        assert_eq!(values(&answer, "linkspan-source").len(), 1, "{nomination}: {answer}");
        assert_eq!(values(&answer, "x-forwarded-client-cert").len(), 1, "{nomination}: {answer}");
    }
    // In a trailer.
    let trailer = format!(
        "printf 'POST / HTTP/1.1\\r\\nHost: {WEB}\\r\\nTransfer-Encoding: chunked\\r\\nTrailer: linkspan-source\\r\\n\
         Connection: close\\r\\n\\r\\n1\\r\\nx\\r\\n0\\r\\nlinkspan-source: {canary}\\r\\n\\r\\n' | \
         timeout 5 bash -c 'exec 3<>/dev/tcp/{WEB}/8090; cat >&3; cat <&3'"
    );
    let answer = east.host.try_sh(&trailer);
    assert!(answer.1.contains("200") && !answer.1.contains(canary), "{}", answer.1);
}

#[test]
fn s01_forged_identity_headers_never_arrive_over_http2() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = servers::python(&west.host, "grpc_server.py", 50051);
    west.apply("echo.yaml", &Service::new("shop", "echo").port("grpc", 50051, Some("grpc")).yaml());
    let name = "echo-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let canary = "forged-by-the-client";
    // The server answers a gRPC message (five bytes of frame before it) with all fields that it was sent.
    let call = |more: &str| {
        let answer = east.host.sh(&format!(
            "printf '\\0\\0\\0\\0\\7headers' | curl -fsS --http2-prior-knowledge -H 'content-type: application/grpc' \
             -H 'te: trailers' {more} --data-binary @- http://{name}:50051/test.Echo/Unary | tail -c +6"
        ));
        assert!(!answer.contains(canary), "{more} arrived: {answer}");
        assert_eq!(values(&answer, "linkspan-source").len(), 1, "{more}: {answer}");
        assert_eq!(values(&answer, "x-forwarded-client-cert").len(), 1, "{more}: {answer}");
        answer
    };
    assert!(call("-H 'x-other: arrives'").contains("arrives"), "other fields do arrive");
    for form in forged(canary) {
        call(&format!("-H '{form}' -H 'linkspan-source: {canary}'"));
    }
}

#[test]
fn an_export_policy_is_enforced_by_identity_and_assurance() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _web = web(west);
    east.wait_resolves(WEB);
    west.apply(
        "policy.yaml",
        "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: web, namespace: shop}\nspec:\n  \
         services: [web]\n  allow:\n    - peers: [east]\n      identities: [\"spiffe://east.linkspan.internal/ns/shop/sa/frontend\"]\n      \
         minimumAssurance: network\n",
    );
    let status = |client: &str| {
        east.host
            .try_sh(&format!("curl -sS -o /dev/null -w '%{{http_code}}' --interface {client} http://{WEB}:8090/"))
            .1
    };
    eventually("the policy denies the robot", PATIENCE, || status("127.0.2.7") == "403");
    assert_eq!(status("127.0.1.5"), "200");
    assert_eq!(status("127.0.9.9"), "403");
    let denied = east.host.sh(&format!("curl -sS -i --interface 127.0.2.7 http://{WEB}:8090/"));
    assert!(denied.to_lowercase().contains("linkspan-error: denied"), "{denied}");
    west.remove("policy.yaml");
    eventually("without the policy everyone may", PATIENCE, || status("127.0.2.7") == "200");
}
