use std::net::TcpListener;

use super::*;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

fn listening(text: &str, inode: u64) -> Socket {
    Socket { listen: at(text), uid: 0, inode }
}

#[test]
#[cfg(target_endian = "little")]
fn tables_of_the_kernel_are_read() {
    let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
               \x20  0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 4711 1 00 100 0 0 10 0\n\
               \x20  1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 00 20 4 30 10 -1\n";
    assert_eq!(read(tcp), [Socket { listen: at("0.0.0.0:8080"), uid: 33, inode: 4711 }], "only what listens");
    let tcp6 = "heading\n\
                \x20  0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 00:0 0  0  0 5 1\n\
                a line of another kernel\n";
    assert_eq!(read(tcp6), [listening("[::1]:80", 5)]);
}

#[test]
fn the_nearest_listener_is_the_one_in_the_way() {
    let sockets =
        [listening("[::]:80", 1), listening("0.0.0.0:80", 2), listening("127.0.0.1:80", 3), listening("0.0.0.0:81", 4)];
    let inode = |sockets: &[Socket], wanted| in_the_way(sockets, at(wanted)).map(|socket| socket.inode);
    assert_eq!(inode(&sockets, "127.80.0.1:80"), Some(2));
    assert_eq!(inode(&sockets, "127.0.0.1:80"), Some(3));
    assert_eq!(inode(&sockets[..1], "127.80.0.1:80"), Some(1), "a wildcard of IPv6 takes IPv4, too");
    assert_eq!(inode(&sockets, "[fd00::1]:80"), Some(1));
    assert_eq!(inode(&sockets[1..], "[fd00::1]:80"), None);
    assert_eq!(inode(&sockets, "127.80.0.1:82"), None);
}

/// A wildcard listener of a program answers at every mirrored address: people must learn which program that is.
#[test]
fn a_program_in_the_way_is_named() {
    let other = TcpListener::bind("0.0.0.0:0").expect("bound");
    let port = other.local_addr().expect("address").port();
    let mirror = at(&format!("127.80.0.1:{port}"));
    // To the gateway (any other process) this test is the stranger.
    let found = find(u32::MAX, &[mirror, at("127.80.0.1:1")]);
    assert_eq!(found.len(), 1, "{found:?}");
    let occupant = &found[&mirror];
    assert_eq!(occupant.listen, at(&format!("0.0.0.0:{port}")));
    let process = occupant.process.as_ref().expect("our own process can be seen");
    assert_eq!(process.pid, std::process::id());
    assert!(occupant.sentence().contains(&format!("(process {}) listens on 0.0.0.0:{port}", process.pid)));
    assert!(occupant.remedy().contains(&format!("127.0.0.1:{port}")));
    assert!(find(std::process::id(), &[mirror]).is_empty(), "the gateway is not in its own way");
}

#[test]
fn a_program_that_may_not_be_seen_is_to_be_found_with_ss() {
    let occupant = Occupant { listen: at("0.0.0.0:8080"), uid: 33, process: None };
    assert!(occupant.sentence().starts_with("a program of the user with number 33 listens on 0.0.0.0:8080"));
    assert!(occupant.remedy().contains("ss -ltnp 'sport = :8080'"), "{}", occupant.remedy());
    let exact = Occupant { listen: at("127.80.0.1:80"), ..occupant };
    assert!(exact.remedy().contains("another address or port"));
}
