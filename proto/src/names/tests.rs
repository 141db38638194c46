use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn service(text: &str) -> ServiceName {
    ServiceName::parse(text).unwrap()
}

fn cluster(text: &str) -> ClusterName {
    ClusterName::parse(text).unwrap()
}

fn linked(names: &[&str]) -> BTreeSet<ClusterName> {
    names.iter().map(|name| cluster(name)).collect()
}

#[test]
fn labels_follow_rfc_1123() {
    let longest = "a".repeat(MAX_LABEL);
    for good in ["a", "0", "a-b", "a--b", "xn--bcher-kva", "123", &longest] {
        assert_eq!(ClusterName::parse(good).unwrap().as_str(), good);
        assert_eq!(good.parse::<Namespace>().unwrap(), *good);
    }
    let too_long = "a".repeat(MAX_LABEL + 1);
    for bad in
        ["", "-", "-a", "a-", "A", "a.b", "a_b", "a b", "a/b", "ä", "a\0", "a\n", "*", "xn--abc-", "xn--", &too_long]
    {
        assert!(ClusterName::parse(bad).is_err(), "{bad:?}");
        assert!(ServiceName::parse(bad).is_err(), "{bad:?}");
        assert!(EndpointName::parse(bad).is_err(), "{bad:?}");
        assert!(PortName::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn service_accounts_are_subdomains() {
    let longest = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
    assert_eq!(longest.len(), MAX_SUBDOMAIN);
    for good in ["default", "a.b.c", "build-robot.v2", &longest] {
        assert!(ServiceAccountName::parse(good).is_ok(), "{good}");
    }
    let too_long = format!("{longest}d");
    for bad in ["", ".", "a.", ".a", "a..b", "a.-b", "a/b", &too_long, &"a".repeat(64)] {
        assert!(ServiceAccountName::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn keys_have_one_slash() {
    let key = ServiceKey::parse("shop/web").unwrap();
    assert_eq!((key.namespace.as_str(), key.name.as_str(), key.to_string().as_str()), ("shop", "web", "shop/web"));
    for bad in ["", "/", "web", "shop/", "/web", "a/b/c", "Shop/web"] {
        assert!(ServiceKey::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn names_are_checked_when_deserialised() {
    let key: ServiceKey = serde_json::from_str("\"shop/web\"").unwrap();
    assert_eq!(serde_json::to_string(&key).unwrap(), "\"shop/web\"");
    assert_eq!(serde_json::from_str::<ClusterName>("\"east\"").unwrap(), cluster("east"));
    for bad in ["\"East\"", "\"\"", "1", "null", "[\"east\"]"] {
        assert!(serde_json::from_str::<ClusterName>(bad).is_err(), "{bad}");
    }
    let message = serde_json::from_str::<ClusterName>("\"East\"").unwrap_err().to_string();
    assert!(message.contains("cluster name `East`"), "{message}");
}

#[test]
fn the_usual_mirror_name_is_that_of_linkerd() {
    let all = linked(&["west", "east", "north-west"]);
    assert_eq!(mirror_name(&service("web"), &cluster("west"), &all), "web-west");
    assert_eq!(mirror_name(&service("web"), &cluster("north-west"), &all), "web-north-west");
    assert_eq!(mirror_name(&service("web-1"), &cluster("east"), &BTreeSet::new()), "web-1-east");
}

#[test]
fn a_text_belongs_to_the_longest_linked_cluster() {
    let both = linked(&["baz", "bar-baz"]);
    assert_eq!(mirror_name(&service("foo"), &cluster("bar-baz"), &both), "foo-bar-baz");
    let other = mirror_name(&service("foo-bar"), &cluster("baz"), &both);
    assert_ne!(other, "foo-bar-baz");
    assert!(other.as_str().starts_with("foo-bar-x") && other.as_str().ends_with("-baz"), "{other}");
    // Where only one of them is linked, nobody else claims the text.
    assert_eq!(mirror_name(&service("foo-bar"), &cluster("baz"), &linked(&["baz"])), "foo-bar-baz");
}

#[test]
fn mirror_names_do_not_change_between_builds() {
    let both = linked(&["baz", "bar-baz"]);
    let short = mirror_name(&service("foo-bar"), &cluster("baz"), &both);
    assert_eq!(short, "foo-bar-xjpk54qjdrx-baz");
    let long_cluster = cluster(&"c".repeat(63));
    let long = mirror_name(&service("web"), &long_cluster, &both);
    assert_eq!(long, "web-xmudfnvs6hnpwot5q2ah5p3oj7r-cccccccccccccccccccc");
}

#[test]
fn what_looks_like_a_mark_is_never_plain() {
    let forged = mirror_name(&service("foo-bar"), &cluster("baz"), &linked(&["baz", "bar-baz"]));
    // A peer exports a service whose plain name would be another's marked name.
    let stem = forged.as_str().strip_suffix("-baz").unwrap();
    for all in [linked(&["baz"]), linked(&["baz", "bar-baz"])] {
        assert_ne!(mirror_name(&service(stem), &cluster("baz"), &all), forged);
    }
    // A cluster whose own name holds a mark gets the long form and loses that part.
    let marked = cluster("xaaaaaaaaaa-baz");
    let name = mirror_name(&service("foo"), &marked, &linked(&["baz", "xaaaaaaaaaa-baz"]));
    assert!(name.as_str().ends_with("-c"), "{name}");
}

#[test]
fn the_longest_names_fit() {
    let (longest_service, longest_cluster) = (service(&"s".repeat(63)), cluster(&"c".repeat(63)));
    let fifty = cluster(&"c".repeat(50));
    let forty_nine = cluster(&"c".repeat(49));
    for name in [&longest_cluster, &fifty, &forty_nine, &cluster("c")] {
        let mirror = mirror_name(&longest_service, name, &BTreeSet::new());
        assert!(mirror.as_str().len() <= MAX_LABEL && ServiceName::parse(mirror.as_str()).is_ok(), "{mirror}");
        let hyphens = service(&format!("s{}s", "-".repeat(61)));
        let mirror = mirror_name(&hyphens, name, &BTreeSet::new());
        assert!(ServiceName::parse(mirror.as_str()).is_ok(), "{mirror}");
    }
}

/// Small, fast, and the same on every run.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % below as u64).unwrap()
    }

    /// A label of parts that also stand in cluster names, now and then with something that looks like a mark.
    fn label(&mut self) -> String {
        const PARTS: [&str; 12] = [
            "a",
            "b",
            "foo",
            "bar",
            "baz",
            "web",
            "1",
            "",
            "x",
            "xaaaaaaaaaa",
            "longer-part-of-a-name",
            "xabcdefghijabcdefghijabcdef",
        ];
        let count = 1 + self.next(6);
        let text = (0..count).map(|_| PARTS[self.next(PARTS.len())]).collect::<Vec<_>>().join("-");
        let text = text.trim_matches('-');
        let cut = text.get(..MAX_LABEL).unwrap_or(text);
        match cut.trim_matches('-') {
            "" => "a".to_owned(),
            text => text.to_owned(),
        }
    }
}

/// S-36: a million pairs, chosen to meet.
#[test]
fn endpoints_of_a_stateful_set_have_the_names_of_linkerd_and_all_others_a_mark() {
    let name = |service_name: &str, endpoint: &str, cluster_name: &str, taken| {
        let endpoint = EndpointName::parse(endpoint).unwrap();
        let linked = linked(&["west", "far-west"]);
        endpoint_name(&service(service_name), &endpoint, &cluster(cluster_name), &linked, taken).to_string()
    };
    assert_eq!(name("cache", "cache-0", "west", false), "cache-0-west");
    assert_eq!(name("cache", "cache-12", "far-west", false), "cache-12-far-west");
    let marked = [
        name("cache", "cache-0", "west", true),
        name("peers", "cache-0", "west", false),
        name("cache", "cache", "west", false),
        name("cache", "cache-0-0", "west", false),
        name("cache", "7f3", "west", false),
    ];
    let distinct: BTreeSet<_> = marked.iter().collect();
    assert_eq!(distinct.len(), marked.len());
    for text in &marked {
        assert!(has_mark(text) && text.ends_with("-west") && text.len() <= MAX_LABEL, "{text}");
        assert!(text.starts_with(|first: char| first.is_ascii_lowercase()), "{text}");
    }
    let long = "w".repeat(MAX_LABEL);
    for taken in [false, true] {
        let text = name(&"s".repeat(60), &format!("{}-0", "s".repeat(60)), &long, taken);
        assert!(text.len() <= MAX_LABEL && has_mark(&text), "{text}");
    }
    let endpoint = EndpointName::parse("cache-0").unwrap();
    let of = |from: &str| clusterset_endpoint_name(&service("cache"), &endpoint, &cluster(from)).to_string();
    assert!(of("west").starts_with("cache-0-x") && of("west").ends_with("-clusterset"), "{}", of("west"));
    assert_ne!(of("west"), of("east"));
    assert!(of("west").len() <= MAX_LABEL);
}

/// Services of mirrors and of endpoints stand in one namespace: no two of them have one name, whatever peers are called and export.
#[test]
fn endpoints_and_mirrors_never_share_a_name() {
    let services = ["a", "a-0", "a-0-0", "a-0-west", "west", "west-0", "0-a"];
    let endpoints = ["a-0", "a-0-0", "a-0-west", "west-0", "west-0-0", "a", "0", "0-a"];
    let clusters = ["west", "0-west", "a-0-west", "0", "a-west"];
    let linked = linked(&clusters);
    let mut names: HashMap<ServiceName, String> = HashMap::new();
    let mut note = |name: ServiceName, what: String| {
        assert!(name.as_str().len() <= MAX_LABEL);
        if let Some(other) = names.insert(name.clone(), what.clone()) {
            panic!("{name} is the name of {what} and of {other}");
        }
    };
    for from in clusters.map(cluster) {
        for one in services.map(service) {
            note(mirror_name(&one, &from, &linked), format!("{one} of {from}"));
            for endpoint in endpoints {
                let taken = services.contains(&endpoint);
                let endpoint = EndpointName::parse(endpoint).unwrap();
                let what = format!("endpoint {endpoint} of {one} of {from}");
                note(clusterset_endpoint_name(&one, &endpoint, &from), format!("{what} in the clusterset"));
                note(endpoint_name(&one, &endpoint, &from, &linked, taken), what);
            }
        }
    }
    for one in services.map(service) {
        note(mirror_name(&one, &cluster(CLUSTERSET), &BTreeSet::new()), format!("{one} of all"));
    }
}

#[test]
fn no_cluster_has_the_name_of_all_of_them() {
    assert_eq!(cluster("west").reserved(), None);
    assert!(cluster("clusterset").reserved().unwrap().contains("another name"));
}

#[test]
fn mirror_names_are_injective() {
    let mut random = Random(7);
    let mut clusters: BTreeSet<ClusterName> = linked(&[
        "baz",
        "bar-baz",
        "foo-bar-baz",
        "a",
        "a-a",
        "b-a",
        "web",
        "web-a",
        "xaaaaaaaaaa-a",
        "a-xaaaaaaaaaa",
        "xaaaaaaaaaa",
    ]);
    clusters.insert(cluster(&"c".repeat(63)));
    clusters.insert(cluster(&"c".repeat(62)));
    while clusters.len() < 40 {
        clusters.insert(cluster(&random.label()));
    }
    let mut services = BTreeSet::new();
    while services.len() < 25_000 {
        services.insert(service(&random.label()));
        // The stems of real mirror names, so that marked names are met by services that look like them.
        if services.len().is_multiple_of(50) {
            let pair = (service(&random.label()), clusters.iter().nth(random.next(clusters.len())).unwrap().clone());
            let name = mirror_name(&pair.0, &pair.1, &clusters);
            services.insert(service(name.as_str()));
            if let Some((stem, _)) = name.as_str().rsplit_once('-') {
                services.insert(service(stem.trim_end_matches('-')));
            }
        }
    }
    let mut seen: HashMap<ServiceName, (&ServiceName, &ClusterName)> = HashMap::new();
    for name in &services {
        for peer in &clusters {
            let mirror = mirror_name(name, peer, &clusters);
            assert!(ServiceName::parse(mirror.as_str()).is_ok(), "{mirror}");
            if let Some(other) = seen.insert(mirror.clone(), (name, peer)) {
                panic!("{mirror} is the name of {name}@{peer} and of {}@{}", other.0, other.1);
            }
        }
    }
    assert!(seen.len() >= 1_000_000);
}

proptest! {
    #[test]
    fn any_two_pairs_have_two_names(
        one in "[a-b]{1,3}(-[a-b]{1,3}){0,4}", other in "[a-b]{1,3}(-[a-b]{1,3}){0,4}",
        here in "[a-b]{1,3}(-[a-b]{1,3}){0,2}", there in "[a-b]{1,3}(-[a-b]{1,3}){0,2}",
    ) {
        let all = linked(&[&here, &there]);
        let names = (mirror_name(&service(&one), &cluster(&here), &all), mirror_name(&service(&other), &cluster(&there), &all));
        prop_assert_eq!(names.0 == names.1, (one, here) == (other, there));
    }

    #[test]
    fn parsing_is_the_grammar(text in "[a-c0-1A.\\-_]{0,8}") {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = text.starts_with(letter) && text.ends_with(letter) && text.chars().all(|c| letter(c) || c == '-');
        prop_assert_eq!(Namespace::parse(&text).is_ok(), good);
    }
}
