//! What a document that cannot be read seems to be about. Where that is a policy, whoever decides by policies must know:
//! what it would forbid must not happen because of a slip of the pen.

use super::tree::{Node, Value};
use super::typed::distance;
use crate::names::Namespace;
use crate::resources::{API_VERSION, Kind, ObjectKey};

/// As much of a broken document's identity as can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// `kind`, as it is written. `None`: it cannot be told, or the document is a List whose items cannot.
    pub kind: Option<String>,
    /// `apiVersion`, as it is written.
    pub api_version: Option<String>,
    /// `metadata.namespace`, where it is a valid one.
    pub namespace: Option<String>,
    /// `metadata.name`, as it is written.
    pub name: Option<String>,
    /// More than one object is in it, as where a `---` was lost: what stands for one of them does not stand for the others.
    pub several: bool,
}

/// Letters in which a kind may differ from one of ours and still be taken for it: `ExportPolicies` differs in three, the
/// nearest kind of Kubernetes (`NetworkPolicy`) in four.
const KIND_SLIPS: usize = 3;

/// The same for the group in an apiVersion.
const GROUP_SLIPS: usize = 2;

impl Subject {
    /// Whether the document may be meant as an ExportPolicy: its kind resembles that, cannot be told, or is an unknown one
    /// of our group or of none.
    #[must_use]
    pub fn may_be_export_policy(&self) -> bool {
        let Some(kind) = &self.kind else { return true };
        if resembles_export_policy(kind) {
            return true;
        }
        let is_known = kind == "Site" || Kind::ALL.into_iter().any(|known| known.as_str() == kind);
        !is_known && self.api_version.as_deref().is_none_or(resembles_our_group)
    }

    /// The object that the document is about, if all of its key can be told.
    #[must_use]
    pub fn key(&self) -> Option<ObjectKey> {
        let kind = self.known_kind()?;
        let namespace = if kind.is_namespaced() { self.namespace.clone()? } else { String::new() };
        Some(ObjectKey { kind, namespace, name: self.name.clone()? })
    }

    /// Whether nothing that can be told speaks against the document being about this object.
    #[must_use]
    pub fn may_be(&self, key: &ObjectKey) -> bool {
        let agrees = |told: Option<&String>, known: &str| told.is_none_or(|told| told == known);
        let kind = match (&self.kind, self.known_kind()) {
            (None, _) => true,
            (Some(_), Some(kind)) => kind == key.kind,
            (Some(_), None) => self.may_be_export_policy() && key.kind == Kind::ExportPolicy,
        };
        kind && agrees(self.name.as_ref(), &key.name)
            && (!key.kind.is_namespaced() || agrees(self.namespace.as_ref(), &key.namespace))
    }

    fn known_kind(&self) -> Option<Kind> {
        let written = self.kind.as_deref()?;
        let known = Kind::ALL.into_iter().find(|kind| kind.as_str() == written);
        known.or_else(|| resembles_export_policy(written).then_some(Kind::ExportPolicy))
    }

    /// Of a document that is YAML.
    pub(super) fn of_node(node: &Node) -> Self {
        let text = |node: Option<&Node>| match node.map(|node| &node.value) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let metadata = node.get("metadata");
        let of_metadata = |key: &str| text(metadata.and_then(|metadata| metadata.get(key)));
        Self {
            kind: text(node.get("kind")).filter(|kind| kind != "List"),
            api_version: text(node.get("apiVersion")),
            namespace: of_metadata("namespace").filter(|namespace| Namespace::parse(namespace).is_ok()),
            name: of_metadata("name"),
            several: false,
        }
    }

    /// Of a document that is no YAML, by its lines alone.
    pub(super) fn of_text(document: &str) -> Self {
        let mut kinds = values(document, "kind");
        // `kind: [` tells nothing.
        kinds.retain(|(kind, _)| kind.chars().all(|letter| letter.is_ascii_alphanumeric()));
        let policy = kinds.iter().find(|(kind, _)| resembles_export_policy(kind));
        // A kind further inside may be that of a part; what two kinds at the margin mean (a lost `---`) can only be told
        // where one of them is a policy.
        let margin: Vec<_> = kinds.iter().filter(|(_, at_margin)| *at_margin).collect();
        let is_list = margin.iter().any(|(kind, _)| kind == "List");
        let kind = policy.or_else(|| margin.first().copied().filter(|_| !is_list)).map(|(kind, _)| kind.clone());
        let only = |key: &str| {
            let mut found: Vec<_> = values(document, key).into_iter().map(|(value, _)| value).collect();
            found.sort();
            found.dedup();
            if found.len() == 1 { found.pop() } else { None }
        };
        let first = |key: &str| values(document, key).into_iter().next().map(|(value, _)| value);
        Self {
            kind,
            api_version: first("apiVersion"),
            namespace: only("namespace").filter(|namespace| Namespace::parse(namespace).is_ok()),
            // Of several objects in one text no name is the right one.
            name: if margin.len() > 1 || is_list { None } else { first("name") },
            several: margin.len() > 1,
        }
    }
}

/// The values of a key, and whether each stands at the margin, also in `metadata: {name: a, namespace: b}` on one line.
fn values(document: &str, wanted: &str) -> Vec<(String, bool)> {
    let quotes = ['"', '\''];
    let mut found = Vec::new();
    for line in document.lines() {
        for (index, piece) in line.split(['{', ',', '}']).enumerate() {
            let Some((key, value)) = piece.split_once(':') else { continue };
            let at_margin = index == 0 && !key.starts_with([' ', '\t', '-']);
            if key.trim().trim_start_matches(['-', '?', ' ']).trim_matches(quotes) != wanted {
                continue;
            }
            let value = value.split(" #").next().unwrap_or_default().trim().trim_matches(quotes);
            if !value.is_empty() {
                found.push((value.to_owned(), at_margin));
            }
        }
    }
    found
}

fn resembles_export_policy(kind: &str) -> bool {
    let letters: String = kind.chars().filter(char::is_ascii_alphanumeric).collect();
    let letters = letters.to_ascii_lowercase();
    distance(&letters, "exportpolicy") <= KIND_SLIPS || (letters.contains("export") && letters.contains("polic"))
}

fn resembles_our_group(api_version: &str) -> bool {
    let group = |version: &str| version.split('/').next().unwrap_or_default().trim().to_owned();
    distance(&group(api_version), &group(API_VERSION)) <= GROUP_SLIPS
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    const POLICY: &str = "apiVersion: linkspan.io/v1alpha1\nkind: ExportPolicy\nmetadata:\n  name: closed\n  namespace: shop\nspec: {allow: []}\n";

    /// The subjects of all broken documents.
    fn subjects(text: &str) -> Vec<Subject> {
        parse(text, "a").into_iter().filter_map(|parsed| parsed.err().map(|error| *error.subject)).collect()
    }

    fn subject(text: &str) -> Subject {
        let [subject] = subjects(text).try_into().unwrap_or_else(|all| panic!("{text}\n{all:?}"));
        subject
    }

    #[test]
    fn a_broken_policy_is_known_by_its_key() {
        let key = ObjectKey { kind: Kind::ExportPolicy, namespace: "shop".to_owned(), name: "closed".to_owned() };
        let broken = POLICY.replace("allow", "alow");
        let listed: String = broken.lines().map(|line| format!("  {line}\n")).collect();
        for text in [
            broken.clone(),
            format!("apiVersion: v1\nkind: List\nitems:\n- {}", listed.trim_start()),
            POLICY.replace("kind: ExportPolicy", "kind: ExportPolcy"),
            POLICY.replace("kind: ExportPolicy", "kind: exportpolicies"),
            POLICY.replace("apiVersion: linkspan.io/v1alpha1", "apiVersion: linkspan/v1"),
            POLICY.replace("apiVersion: linkspan.io/v1alpha1\n", ""),
            POLICY.replace("spec: {allow: []}", "spec: {allow: ["),
            POLICY.replace("spec: {allow: []}", "\tspec: {allow: []}"),
            "{\"kind\": \"ExportPolicy\", \"metadata\": {\"name\": \"closed\", \"namespace\": \"shop\"}, \"spec\": ["
                .to_owned(),
            POLICY.replace("kind: ExportPolicy", "kind: ExportPolicy # who may call").replace("[]}", "[}"),
        ] {
            let subject = subject(&text);
            assert!(subject.may_be_export_policy(), "{text}");
            assert_eq!(subject.key().as_ref(), Some(&key), "{text}");
            assert!(subject.may_be(&key));
        }
    }

    #[test]
    fn what_cannot_be_told_may_be_a_policy() {
        for text in [
            "kind: [",
            "half a li",
            "a: 1\nb: 2\n",
            "- 1\n",
            "kind: List\nitem: []\n",
            "kind: List\nitems: [{kind: Service}, {",
            "kind: Policy\nmetadata: {name: closed}\n",
            "apiVersion: linkspan.io/v1alpha1\nkind: Policy\n",
            "apiVersion: linkspam.io/v1alpha1\nkind: Rules\n",
            "Kind: ExportPolicy\n",
            "kind: {}\n",
        ] {
            let subject = subject(text);
            assert!(subject.may_be_export_policy(), "{text}");
            assert_eq!(subject.key(), None, "{text}");
        }
        let unclear = POLICY.replace("namespace: shop", "namespace: Shop!");
        assert_eq!(subject(&unclear).namespace, None);
        let two = format!("{POLICY}--\n{}", POLICY.replace("shop", "bank"));
        assert_eq!(subject(&two).namespace, None, "one of two namespaces would leave the other open");
        assert!(subject(&two).several && !subject(&unclear).several);
    }

    #[test]
    fn what_is_clearly_something_else_is_no_policy() {
        for text in [
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {prots: []}\n",
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n",
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\n",
            "apiVersion: linkspan.io/v1alpha1\nkind: Site\nmetadata: {name: east}\n",
            "apiVersion: linkspan.io/v1alpha1\nkind: Link\nmetadata: {name: east}\nspec: {trustdomain: x}\n",
            "kind: EndpointSlice\nendpoints: [{targetRef: {kind: Pod, name: a}},\n",
        ] {
            assert!(!subject(text).may_be_export_policy(), "{text}");
        }
        let lost_border =
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n--\nkind: ExportPolicy\nmetadata: {name: web}\n";
        assert!(subject(lost_border).may_be_export_policy());
        assert_eq!(subject(lost_border).key(), None);
    }
}
