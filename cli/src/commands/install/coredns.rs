//! CoreDNS' configuration: the lines by which it hands names of the clusterset over to the controllers' DNS.
//!
//! In: a Corefile, or the ConfigMap that holds it. Out: where it forwards the zone; the ConfigMap with the lines, or without
//! them. Refuses when: the zone is forwarded elsewhere by lines without our comment in them: that is somebody's decision, and other
//! products write blocks of the same shape. Never does: change anything else of it.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};
use linkspan_proto::manifest;
use serde_json::Value;

/// The zone of the multi-cluster services API (KEP-1645).
pub(crate) const ZONE: &str = "clusterset.local";

/// A comment in the lines that are ours.
const MARK: &str = "# linkspan";

/// A ConfigMap has 1 MiB at most; its YAML has some more.
const MAX_BYTES: u64 = 4 << 20;

/// The lines to add.
pub(crate) fn block(address: &str) -> String {
    format!("{ZONE}:53 {{\n    {MARK}\n    forward . {address}\n}}\n")
}

/// The ConfigMap with the lines in it, as YAML for `kubectl replace -f -`.
pub(super) fn with_lines(file: &Path, address: &str) -> anyhow::Result<String> {
    edited(&read(file)?, |corefile| added(corefile, address))
}

/// The ConfigMap without them.
pub(super) fn without_lines(file: &Path) -> anyhow::Result<String> {
    edited(&read(file)?, |corefile| Ok(removed(corefile)))
}

fn read(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            bail!(
                "--coredns -: pipe the ConfigMap in: kubectl -n kube-system get configmap coredns -o yaml | linkspan ..."
            );
        }
        stdin.lock().take(MAX_BYTES).read_to_string(&mut text).context("--coredns -: standard input")?;
    } else {
        let opened = std::fs::File::open(file).with_context(|| format!("--coredns {}", file.display()))?;
        opened.take(MAX_BYTES).read_to_string(&mut text).with_context(|| format!("--coredns {}", file.display()))?;
    }
    Ok(text)
}

/// Applies a change to the Corefile in a ConfigMap. Its resource version stays: `kubectl replace` then refuses to write over what
/// somebody else changed meanwhile.
fn edited(text: &str, change: impl FnOnce(&str) -> anyhow::Result<String>) -> anyhow::Result<String> {
    let mut map: Value = serde_saphyr::from_str(text).context("--coredns: not the YAML or JSON of a ConfigMap")?;
    if map["kind"] != "ConfigMap" {
        bail!(
            "--coredns: kind {}: give it what `kubectl -n kube-system get configmap coredns -o yaml` prints",
            map["kind"].as_str().unwrap_or("(none)")
        );
    }
    let Some(corefile) = map["data"]["Corefile"].as_str() else {
        bail!(
            "--coredns: the ConfigMap has no key `Corefile`: this is not CoreDNS' configuration; let the DNS of this cluster \
             forward the zone {ZONE} to the address of the Service linkspan-dns"
        );
    };
    map["data"]["Corefile"] = Value::from(change(corefile)?);
    if let Some(metadata) = map["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    Ok(manifest::to_yaml(&map)?)
}

/// A Corefile with our lines; one of ours with another address is corrected.
fn added(corefile: &str, address: &str) -> anyhow::Result<String> {
    let rest = removed(corefile);
    match forwarded(&rest) {
        None => {}
        Some(targets) if targets.iter().any(|target| target == address) => return Ok(corefile.to_owned()),
        Some(targets) => bail!(
            "--coredns: it forwards {ZONE} to {} already, in lines that this program did not write; correct them by hand: \
             kubectl -n kube-system edit configmap coredns",
            targets.join(" ")
        ),
    }
    let gap = if rest.is_empty() || rest.ends_with('\n') { "" } else { "\n" };
    Ok(format!("{rest}{gap}{}", block(address)))
}

/// A Corefile without our lines: a server block with nothing in it but our mark and `forward . ADDRESS`.
fn removed(corefile: &str) -> String {
    let lines: Vec<&str> = corefile.split_inclusive('\n').collect();
    let mut kept = String::with_capacity(corefile.len());
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        if let [first, second, third, fourth, ..] = lines.get(at..).unwrap_or_default()
            && first.trim() == format!("{ZONE}:53 {{")
            && second.trim() == MARK
            && let ["forward", ".", _] = third.split_whitespace().collect::<Vec<_>>().as_slice()
            && fourth.trim() == "}"
        {
            at += 4;
            continue;
        }
        kept.push_str(line);
        at += 1;
    }
    kept
}

/// Where a Corefile sends the zone: by a server block of its own, or by a `forward` for it inside another one.
pub(crate) fn forwarded(corefile: &str) -> Option<Vec<String>> {
    let mut depth = 0_usize;
    let mut inside = false;
    for line in corefile.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        let opens = words.last().is_some_and(|word| *word == "{");
        if line == "}" {
            depth = depth.saturating_sub(1);
            continue;
        }
        if depth == 0 && opens {
            inside = words.iter().any(|word| is_zone(word));
        } else if depth == 1
            && let ["forward", from, targets @ ..] = words.as_slice()
            && (is_zone(from) || (inside && *from == "."))
        {
            let targets = targets.iter().filter(|word| **word != "{");
            return Some(targets.map(|target| bare(target).to_owned()).collect());
        }
        if opens {
            depth += 1;
        }
    }
    None
}

/// `clusterset.local`, with or without scheme, port, final dot and comma.
fn is_zone(word: &str) -> bool {
    let word = word.trim_end_matches(',').trim_start_matches("dns://");
    let name = word.split(':').next().unwrap_or_default();
    name.trim_end_matches('.').eq_ignore_ascii_case(ZONE)
}

/// An address without scheme and port.
fn bare(target: &str) -> &str {
    let target = target.trim_start_matches("dns://");
    match target.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        // More than one colon is an IPv6 address without a port.
        None if target.matches(':').count() == 1 => target.split(':').next().unwrap_or(target),
        None => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBEADM: &str = ".:53 {\n    errors\n    health {\n       lameduck 5s\n    }\n    kubernetes cluster.local in-addr.arpa {\n       \
                           pods insecure\n    }\n    forward . /etc/resolv.conf {\n       max_concurrent 1000\n    }\n    cache 30\n}\n";

    #[test]
    fn a_plain_corefile_forwards_nothing_of_ours() {
        assert_eq!(forwarded(KUBEADM), None);
        assert_eq!(forwarded(""), None);
        let commented = format!("{KUBEADM}# clusterset.local:53 {{\n#  forward . 10.96.0.20\n# }}\n");
        assert_eq!(forwarded(&commented), None);
    }

    #[test]
    fn a_block_or_a_forward_of_its_own_is_found() {
        for (added, address) in [
            ("clusterset.local:53 {\n    forward . 10.96.0.20\n}\n", "10.96.0.20"),
            (
                "dns://clusterset.local. {\n  errors\n  cache {\n    success 5\n  }\n  forward . [fd00::20]:53\n}\n",
                "fd00::20",
            ),
            (
                "example.org, ClusterSet.local {\n  forward . dns://10.96.0.20:53 {\n    prefer_udp\n  }\n}\n",
                "10.96.0.20",
            ),
        ] {
            assert_eq!(forwarded(&format!("{KUBEADM}{added}")), Some(vec![address.to_owned()]), "{added}");
            assert_eq!(forwarded(&format!("{added}{KUBEADM}")), Some(vec![address.to_owned()]), "{added}");
        }
        let inside = KUBEADM.replace("    cache 30", "    forward clusterset.local 10.96.0.20\n    cache 30");
        assert_eq!(forwarded(&inside.replace("forward . /etc", "x . /etc")), Some(vec!["10.96.0.20".to_owned()]));
    }

    #[test]
    fn the_lines_are_added_once_corrected_and_taken_out_again() {
        let with = added(KUBEADM, "10.96.0.20").unwrap();
        assert_eq!(with, format!("{KUBEADM}clusterset.local:53 {{\n    # linkspan\n    forward . 10.96.0.20\n}}\n"));
        assert_eq!(added(&with, "10.96.0.20").unwrap(), with);
        assert_eq!(added(&with, "10.96.0.53").unwrap(), with.replace("0.20", "0.53"));
        assert_eq!(removed(&with), KUBEADM);
        // Without a line end at the end of the file.
        let with = added(KUBEADM.trim_end(), "fd00::20").unwrap();
        assert_eq!(with, format!("{KUBEADM}clusterset.local:53 {{\n    # linkspan\n    forward . fd00::20\n}}\n"));
    }

    #[test]
    fn what_somebody_else_wrote_for_the_zone_is_left_to_them() {
        for theirs in [
            "clusterset.local {\n    cache 5\n    forward . 10.96.0.99\n}\n",
            // As Submariner's operator writes it.
            "#lighthouse-start AUTO-GENERATED SECTION. DO NOT EDIT\nclusterset.local:53 {\n    forward . 10.96.0.99\n}\n#lighthouse-end\n",
        ] {
            let theirs = format!("{KUBEADM}{theirs}");
            let error = added(&theirs, "10.96.0.20").unwrap_err().to_string();
            assert!(error.contains("10.96.0.99") && error.contains("by hand"), "{error}");
            assert_eq!(added(&theirs, "10.96.0.99").unwrap(), theirs, "it does what it should");
            assert_eq!(removed(&theirs), theirs);
        }
    }

    #[test]
    fn a_config_map_keeps_all_but_who_managed_it() {
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "coredns", "namespace": "kube-system", "resourceVersion": "7", "managedFields": [{}] },
            "data": { "Corefile": KUBEADM, "more": "kept" }
        });
        let printed = edited(&text.to_string(), |corefile| added(corefile, "10.96.0.20")).unwrap();
        let map: Value = serde_saphyr::from_str(&printed).unwrap();
        assert_eq!(
            map["metadata"],
            serde_json::json!({ "name": "coredns", "namespace": "kube-system", "resourceVersion": "7" })
        );
        assert_eq!(map["data"]["more"], "kept");
        assert_eq!(forwarded(map["data"]["Corefile"].as_str().unwrap()), Some(vec!["10.96.0.20".to_owned()]));
        for (text, named) in [("kind: Secret", "Secret"), ("kind: ConfigMap\ndata: {}", "Corefile"), ("[", "YAML")] {
            let error = edited(text, |corefile| Ok(corefile.to_owned())).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
