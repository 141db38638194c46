//! What several modules need: two or three linked sites.

use linkspan_tests::site::{Options, Site, link_all};
use linkspan_tests::world::World;

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

/// Skips a test with a loud word where network namespaces cannot be made.
macro_rules! needs_namespaces {
    () => {
        if !linkspan_tests::world::available() {
            return;
        }
    };
}
pub(crate) use needs_namespaces;
