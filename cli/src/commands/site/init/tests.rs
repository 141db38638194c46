use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::Parser;
use linkspan_proto::manifest::site_from_yaml;
use linkspan_proto::resources::Site;

use super::super::SITE_FILE;
use super::init;
use crate::args::{Cli, Command, SiteCommand, SiteInitArgs};

fn args(more: &[&str]) -> Box<SiteInitArgs> {
    let Command::Site(SiteCommand::Init(args)) =
        Cli::parse_from(["linkspan", "site", "init"].iter().chain(more)).command
    else {
        panic!("site init");
    };
    args
}

fn made(dir: &Path, more: &[&str]) -> (String, Site) {
    let mut all = vec!["east", "--dir", dir.to_str().unwrap()];
    all.extend(more);
    init(&args(&all)).unwrap();
    let text = std::fs::read_to_string(dir.join(SITE_FILE)).unwrap();
    let site = site_from_yaml(&text, SITE_FILE).unwrap();
    (text, site)
}

#[test]
fn a_site_with_defaults_parses_back_as_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("deep/east");
    let (text, site) = made(&dir, &[]);
    let mut expected = Site::new("east".parse().unwrap());
    expected.spec.trust_domain = Some(expected.trust_domain());
    assert_eq!(site, expected);
    assert_eq!(text, include_str!("golden-site.yaml"), "the golden file shows what users get");

    assert_eq!(std::fs::metadata(dir.join("state")).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(std::fs::metadata(dir.join("state/ca/root.key")).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::read_dir(dir.join("manifests")).unwrap().count(), 0);
    for line in text.lines() {
        assert!(line.len() <= 120, "{line}");
    }
}

#[test]
fn every_option_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let (_, site) = made(
        &folder.path().join("east"),
        &[
            "--trust-domain=east.example",
            "--listen=127.0.0.1:0",
            "--advertise=east.example.com:4143",
            "--advertise=[2001:db8::1]:0",
            "--mtls-listen=127.0.0.1:1",
            "--dns-listen=[::1]:53",
            "--admin-listen=127.0.0.1:2",
            "--controller-admin-listen=[::1]:3",
            "--mirror-addresses=127.81.0.0/16",
            "--workload=10.0.0.0/24=shop/web",
            "--workload=fd00::/64=ops/robot.v1",
            "--workers=3",
        ],
    );
    assert_eq!(site.trust_domain().as_str(), "east.example");
    assert_eq!(site.spec.gateway.listen.to_string(), "127.0.0.1:0");
    let advertise: Vec<String> = site.spec.gateway.advertise.iter().map(ToString::to_string).collect();
    assert_eq!(advertise, ["east.example.com:4143", "[2001:db8::1]:0"]);
    assert_eq!(site.spec.gateway.mtls_listen.unwrap().to_string(), "127.0.0.1:1");
    assert_eq!(site.spec.gateway.workers, Some(3));
    assert_eq!(site.spec.dns.listen.to_string(), "[::1]:53");
    assert_eq!(site.spec.admin.listen.to_string(), "127.0.0.1:2");
    assert_eq!(site.spec.admin.controller_listen.unwrap().to_string(), "[::1]:3");
    assert_eq!(site.spec.mirror_addresses.to_string(), "127.81.0.0/16");
    assert_eq!(site.spec.workloads.len(), 2);
    assert_eq!(site.spec.workloads[1].service_account.as_str(), "robot.v1");
}

#[test]
fn nothing_is_overwritten() {
    for taken in [SITE_FILE, "state", "manifests"] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(taken), "mine").unwrap();
        let error = init(&args(&["east", "--dir", folder.path().to_str().unwrap()])).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        assert_eq!(std::fs::read_to_string(folder.path().join(taken)).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

#[test]
fn values_that_do_not_fit_together_are_wrong_arguments_and_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("site");
    let wrong = ["east", "--mirror-addresses=127.80.0.0/32", "--dir", dir.to_str().unwrap()];
    let error = init(&args(&wrong)).unwrap_err();
    assert!(error.downcast_ref::<crate::commands::WrongArguments>().is_some(), "{error:#}");
    assert!(error.to_string().contains("mirrorAddresses"), "{error:#}");
    assert!(!dir.exists());
}
