//! Opaque TCP across a link: databases, servers that speak first, TLS that passes through.

use linkspan_tests::manifests::Service;
use linkspan_tests::process::eventually;
use linkspan_tests::servers::{self, Nginx};
use linkspan_tests::site::{PATIENCE, Site};

use super::kit::{linked, needs_namespaces};

#[test]
fn postgresql_with_psql_and_pgbench() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = servers::postgres(&west.host, 5432);
    west.apply("db.yaml", &Service::new("shop", "db").port("postgres", 5432, None).yaml());
    let name = "db-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let bench = east.host.sh("ls -d /usr/lib/postgresql/*/bin | tail -1");
    let bench = format!("{}/pgbench", bench.trim());
    let sum = east.host.sh(&format!(
        "psql -h {name} -U postgres -At -c 'create table t as select generate_series(1,100000) n' -c 'select sum(n) from t'"
    ));
    assert!(sum.contains("5000050000"), "{sum}");
    east.host.sh(&format!("{bench} -h {name} -U postgres -i -q -s 1 postgres 2>&1"));
    let text = east.host.sh(&format!("{bench} -h {name} -U postgres -c 8 -t 100 postgres 2>&1"));
    assert!(text.contains("number of transactions actually processed: 800/800"), "{text}");
    assert!(text.contains("number of failed transactions: 0"), "{text}");
}

#[test]
fn redis_with_its_benchmark() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = servers::redis(&west.host, 6379);
    west.apply("cache.yaml", &Service::new("shop", "cache").port("redis", 6379, None).yaml());
    let name = "cache-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let text = east.host.sh(&format!("redis-benchmark -h {name} -n 20000 -c 20 -t set,get -d 1000 --csv"));
    assert!(text.contains("\"SET\"") && text.contains("\"GET\""), "{text}");
    let value = east.host.sh(&format!("redis-cli -h {name} set key value >/dev/null; redis-cli -h {name} get key"));
    assert_eq!(value, "value\n");
}

#[test]
fn a_server_that_speaks_first_is_not_kept_waiting() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _smtp = servers::python(&west.host, "smtp_server.py", 2525);
    // Port 2525 is not well known: detection has to give up soon by itself.
    west.apply("mail.yaml", &Service::new("shop", "mail").port("smtp", 2525, None).yaml());
    let name = "mail-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let script = format!(
        "import smtplib,time; t=time.monotonic(); s=smtplib.SMTP('{name}',2525,timeout=10); w=time.monotonic()-t; \
         s.sendmail('a@example.org',['b@example.org'],'Subject: hello\\n\\nacross'); s.quit(); assert w<2, w; print('sent')"
    );
    assert_eq!(east.host.sh(&format!("{} -c \"{script}\"", servers::interpreter())), "sent\n");
}

#[test]
fn tls_passes_through_with_the_backends_own_certificate() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let nginx = Nginx::start(&west.host, 8080);
    west.apply("secure.yaml", &Service::new("shop", "secure").port("https", 8082, None).yaml());
    let name = "secure-west.shop.svc.cluster.local";
    let address = east.wait_resolves(name);
    let ca = nginx.dir().join("cert.pem");
    let body = east.host.sh(&format!(
        "curl -fsS --cacert {} --connect-to backend.example:443:{address}:8082 https://backend.example/",
        ca.display()
    ));
    assert_eq!(body, "west\n");
    // By the mirrored name the backend's certificate does not fit: nobody in between can make it fit.
    assert!(!east.host.try_sh(&format!("curl -sS --cacert {} https://{name}:8082/", ca.display())).0);
}

#[test]
fn half_close_and_refusal_reach_the_client() {
    needs_namespaces!();
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    // Reads to the end of input, then answers: works only if half-close crosses the link.
    let server = "import socket\ns=socket.create_server(('127.0.0.1',7000))\nwhile True:\n c,_=s.accept()\n n=0\n \
                  while d:=c.recv(65536): n+=len(d)\n c.sendall(str(n).encode()); c.close()";
    let _sum = west.host.start("sum", "python3", &["-c", server]);
    servers::wait_listening(&west.host, 7000);
    west.apply(
        "sum.yaml",
        &Service::new("shop", "sum").port("sum", 7000, Some("tcp")).port("closed", 7001, Some("tcp")).yaml(),
    );
    let name = "sum-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let client = format!(
        "import socket; c=socket.create_connection(('{name}',7000)); c.sendall(b'x'*5000000); c.shutdown(socket.SHUT_WR); \
         print(c.recv(100).decode())"
    );
    assert_eq!(east.host.sh(&format!("python3 -c \"{client}\"")), "5000000\n");
    // Nothing listens on 7001: the client sees a reset, not an orderly end.
    let refused = format!(
        "import socket\nc=socket.create_connection(('{name}',7001)); c.settimeout(5)\ntry:\n print('got', c.recv(1))\n\
         except ConnectionResetError:\n print('reset')"
    );
    assert_eq!(east.host.sh(&format!("python3 -c \"{refused}\"")), "reset\n");
}

/// A client that asks redis all the time, over one connection, and is cut by what `end` does on the exporting side.
fn is_cut_by(end: impl FnOnce(&Site)) {
    let (_world, sites) = linked(&["east", "west"]);
    let (east, west) = (&sites[0], &sites[1]);
    let _server = servers::redis(&west.host, 6379);
    west.apply("cache.yaml", &Service::new("shop", "cache").port("redis", 6379, None).yaml());
    let name = "cache-west.shop.svc.cluster.local";
    east.wait_resolves(name);
    let script = format!(
        "import socket, time\n\
         client = socket.create_connection(('{name}', 6379), 5)\n\
         try:\n \
         for _ in range(200):\n  \
         client.sendall(b'PING\\r\\n')\n  \
         if not client.recv(64): raise ConnectionError\n  \
         print('answered', flush=True)\n  \
         time.sleep(0.1)\n\
         except ConnectionError: print('cut', flush=True)\n"
    );
    let mut client = east.host.start("client", servers::interpreter(), &["-c", &script]);
    eventually("redis answers", PATIENCE, || client.output().matches("answered").count() > 3);
    end(west);
    let status = client.wait(PATIENCE);
    let output = client.output();
    assert!(status.success() && output.ends_with("cut\n"), "{output}");
}

#[test]
fn a_policy_that_denies_cuts_connections_that_stand() {
    needs_namespaces!();
    let policy = "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata: {name: nobody, namespace: shop}\n\
                  spec: {services: [cache], allow: []}\n";
    is_cut_by(|west| west.apply("policy.yaml", policy));
}

#[test]
fn the_end_of_an_export_cuts_connections_that_stand() {
    needs_namespaces!();
    is_cut_by(|west| west.remove("cache.yaml"));
}
