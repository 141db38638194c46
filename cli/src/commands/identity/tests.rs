use std::os::unix::fs::PermissionsExt;

use clap::Parser;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::args::Cli;
use crate::commands;

fn linkspan(line: &[&str]) -> Result<(), String> {
    let cli = Cli::try_parse_from(["linkspan"].iter().chain(line)).map_err(|error| error.to_string())?;
    commands::run(cli.command).map(drop).map_err(|error| format!("{error:#}"))
}

#[test]
fn files_of_a_workload_are_private_and_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, out) = (folder.path().join("east"), folder.path().join("out"));
    let (dir, out_text) = (dir.to_str().unwrap(), out.to_str().unwrap());
    linkspan(&["site", "init", "east", "--dir", dir]).unwrap();
    let issue = ["identity", "issue", "--dir", dir, "-n", "shop", "-s", "web", "--out", out_text];
    linkspan(&issue).unwrap();
    let mode = |name: &str| std::fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("tls.key"), 0o600);
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 3);
    let pem = std::fs::read(out.join("tls.crt")).unwrap();
    let der = CertificateDer::from_pem_slice(&pem).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
    let names = certificate.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
    assert!(format!("{names:?}").contains("spiffe://east.linkspan.internal/ns/shop/sa/web"));

    assert!(linkspan(&issue).unwrap_err().contains("--replace"));
    assert_eq!(std::fs::read(out.join("tls.crt")).unwrap(), pem);
    linkspan(&issue.iter().copied().chain(["--replace"]).collect::<Vec<_>>()).unwrap();
    assert_ne!(std::fs::read(out.join("tls.crt")).unwrap(), pem);
    assert_eq!(mode("tls.key"), 0o600);
}

#[test]
fn a_name_outside_the_grammar_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("east");
    let dir = dir.to_str().unwrap();
    linkspan(&["site", "init", "east", "--dir", dir]).unwrap();
    for (namespace, account) in [("Shop", "web"), ("shop/sa/root", "web"), ("shop", "../web"), ("shop", "")] {
        let error =
            linkspan(&["identity", "issue", "-d", dir, "-n", namespace, "-s", account, "--out", "out"]).unwrap_err();
        assert!(error.contains("--"), "{error}");
    }
}
