//! What several modules need: two or three linked sites.

use std::net::{TcpListener, UdpSocket};

use linkspan_tests::site::{Options, Site, link_all};
use linkspan_tests::world::{Host, World};

/// Sites named `names`, each on a host of its own, all linked with one another and alive.
pub(crate) fn linked(names: &[&str]) -> (World, Vec<Site>) {
    let (world, sites) = started(names);
    link_all(&sites.iter().collect::<Vec<_>>());
    (world, sites)
}

/// Sites named `names`, each on a host of its own, running, not linked.
pub(crate) fn started(names: &[&str]) -> (World, Vec<Site>) {
    let world = World::new(names);
    let mut sites: Vec<Site> = names.iter().map(|name| Site::init(world.host(name), &Options::default())).collect();
    for site in &mut sites {
        site.start();
    }
    (world, sites)
}

/// Two sites on the machine itself, see [`started_here`], linked and alive.
pub(crate) fn linked_here(names: [&str; 2]) -> (tempfile::TempDir, Vec<Site>) {
    let (dir, sites) = started_here(&names);
    link_all(&sites.iter().collect::<Vec<_>>());
    (dir, sites)
}

/// Sites named `names` on the machine itself, so that a test talks to them without a process of its own; each with controller
/// and gateway apart, running, not linked.
pub(crate) fn started_here(names: &[&str]) -> (tempfile::TempDir, Vec<Site>) {
    // Unix socket paths hold 107 bytes: keep the folder short.
    let dir = tempfile::Builder::new().prefix("ls").tempdir().expect("temporary folder");
    let mut sites: Vec<Site> = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).expect("folder of the host");
        // Apart from what other tests in the machine's network have.
        let range = format!("127.{}.0.0/16", 112 + number);
        let options = Options { link: Some(free_address()), mirrors: Some(range), ..Options::default() };
        sites.push(Site::init(Host::local(name, &folder), &options));
    }
    for site in &mut sites {
        site.start_split();
    }
    (dir, sites)
}

/// An address of loopback that nobody listens at, neither for UDP nor for TCP: a link has both.
fn free_address() -> String {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = udp.local_addr().expect("bound");
        if TcpListener::bind(address).is_ok() {
            return address.to_string();
        }
    }
}

/// Skips a test with a loud word where network namespaces cannot be made.
macro_rules! needs_namespaces {
    () => {
        if !linkspan_tests::world::available() {
            return;
        }
    };
}
pub(crate) use needs_namespaces;
