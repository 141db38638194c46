//! The kit itself, without Linkspan in between: a failure here is the machine's, not the product's.

use linkspan_tests::servers::{self, Nginx, interpreter, script_path};
use linkspan_tests::world::{World, available};

#[test]
fn every_server_answers_its_own_client_directly() {
    if !available() {
        return;
    }
    let world = World::new(&["solo", "other"]);
    let host = world.host("solo");
    let nginx = Nginx::start(&host, 8080);
    assert_eq!(host.sh("curl -fsS http://127.0.0.1:8080/"), "solo\n");
    assert_eq!(host.sh("curl -fsS --http2-prior-knowledge http://127.0.0.1:8081/"), "solo\n");
    assert_eq!(nginx.requests(), 2);
    let _grpc = servers::python(&host, "grpc_server.py", 50051);
    host.sh(&format!("{} {} 127.0.0.1:50051", interpreter(), script_path("grpc_client.py")));
    let _ws = servers::python(&host, "websocket_server.py", 9000);
    assert_eq!(
        host.sh(&format!("{} {} ws://127.0.0.1:9000/", interpreter(), script_path("websocket_client.py"))),
        "ok\n"
    );
    let _smtp = servers::python(&host, "smtp_server.py", 2525);
    let _redis = servers::redis(&host, 6379);
    assert_eq!(host.sh("redis-cli -h 127.0.0.1 ping"), "PONG\n");
    let _postgres = servers::postgres(&host, 5432);
    assert_eq!(host.sh("psql -h 127.0.0.1 -U postgres -At -c 'select 6*7'"), "42\n");
    let _headers = servers::python(&host, "headers_server.py", 8090);
    assert!(host.sh("curl -fsS http://127.0.0.1:8090/a").contains("\"/a\""));
    // Hosts reach one another by their addresses, and nothing else reaches them.
    let other = world.host("other");
    let _server = host.start("plain", "python3", &["-m", "http.server", "--bind", host.address(), "8000"]);
    servers::wait_listening(&host, 8000);
    other.sh(&format!("curl -fsS -o /dev/null http://{}:8000/", host.address()));
}
