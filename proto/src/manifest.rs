//! YAML to resources and back.
//!
//! In: the text of a file with any number of documents. Out: for each document an object and its line, or an error.
//! Refuses when: the text is no YAML, a kind or apiVersion is not one of ours, a field is unknown, missing or has a wrong
//! value. Every error names file, line, column, field, value and remedy, costs only its own document, and says what that
//! document seems to be about ([`Subject`]).
//! Never does: I/O, guessing (`80` is no text, `"80"` is no number, `yes` is no truth value).
//! Numbers: [`MAX_FILE_LEN`]; nesting, nodes and alias expansion are bounded in `tree`.
//!
//! ```text
//! text -> documents (split at `---`) -> tree (every value with its place) -> typed (serde, with the path of an error)
//!      -> Object::validate (rules over several fields)
//! ```

mod documents;
mod subject;
mod tree;
mod typed;

use k8s_openapi::api::core::v1::Service;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::resources::{API_VERSION, FieldError, Site};
pub use crate::resources::{Kind, Object, ObjectKey};
pub use subject::Subject;
use tree::{Node, Value};
use typed::Problem;

/// The longest file that is read, in bytes. Ten thousand services take less.
pub const MAX_FILE_LEN: usize = 8 * 1024 * 1024;

/// The namespace of an object that names none, as in Kubernetes.
const DEFAULT_NAMESPACE: &str = "default";

/// Why a document is no resource.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {}{message}", if field.is_empty() { String::new() } else { format!("{field}: ") })]
pub struct ManifestError {
    /// The file, as the caller named it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// The path of the field, such as `spec.ports[0].port`; empty where the document as a whole is meant.
    pub field: String,
    /// What is wrong, with the value, and what would be right.
    pub message: String,
    /// What the document seems to be about. Nothing can be told where the file as a whole is meant.
    pub subject: Box<Subject>,
}

/// Reads all documents of a file, each with the line where it begins. Documents with nothing but comments are skipped; the items of a
/// `v1` List count as documents.
#[must_use]
pub fn parse(text: &str, file: &str) -> Vec<Result<(Object, usize), ManifestError>> {
    if text.len() > MAX_FILE_LEN {
        let message = format!("the file has {} bytes, at most {MAX_FILE_LEN} are read: split it", text.len());
        return vec![Err(located(file, 1, 1, Problem::new(message), Subject::default()))];
    }
    let mut results = Vec::new();
    for document in documents::split(text) {
        match tree::read(document.text, document.first_line) {
            Err(problem) => {
                let subject = Subject::of_text(document.text);
                results.push(Err(located(file, document.first_line, 1, problem, subject)));
            }
            Ok(Node { value: Value::Null, .. }) => {}
            Ok(node) => {
                for item in items(&node) {
                    let object = object(item).map(|object| (object, item.line));
                    results.push(
                        object
                            .map_err(|problem| located(file, item.line, item.column, problem, Subject::of_node(item))),
                    );
                }
            }
        }
    }
    results
}

/// Reads `site.yaml`.
///
/// # Errors
/// When the file is not one Site with known fields and valid values.
pub fn site_from_yaml(text: &str, file: &str) -> Result<Site, ManifestError> {
    let mut documents = documents::split(text).into_iter().map(|document| {
        tree::read(document.text, document.first_line)
            .map_err(|problem| located(file, document.first_line, 1, problem, Subject::of_text(document.text)))
    });
    let node = loop {
        match documents.next() {
            None => {
                let problem = Problem::new("the file is empty: `linkspan site init` writes one");
                return Err(located(file, 1, 1, problem, Subject::default()));
            }
            Some(Ok(Node { value: Value::Null, .. })) => {}
            Some(node) => break node?,
        }
    };
    let place = |problem| located(file, node.line, node.column, problem, Subject::of_node(&node));
    if let Some(more) = documents.find(|more| !matches!(more, Ok(Node { value: Value::Null, .. }))) {
        let more = more?;
        let message = "a second document: site.yaml holds one Site, everything else belongs into the manifests folder";
        return Err(located(file, more.line, more.column, Problem::new(message), Subject::of_node(&more)));
    }
    site(&node).map_err(place)
}

/// Writes YAML that [`parse`] and `kubectl` read alike.
///
/// # Errors
/// When a value has no form in YAML, such as a map with maps as keys. Resources never do.
pub fn to_yaml(value: &impl Serialize) -> Result<String, YamlError> {
    let mut options = serde_saphyr::SerializerOptions::default();
    // Long lines stay lines: a folded message is harder to search for.
    options.folded_wrap_chars = 1 << 20;
    serde_saphyr::to_string_with_options(value, options).map_err(|error| YamlError { message: error.to_string() })
}

/// Why a value has no form in YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be written as YAML: {message}")]
pub struct YamlError {
    message: String,
}

/// The public error; the place is that of the problem, or else the given one.
fn located(file: &str, line: usize, column: usize, problem: Problem, subject: Subject) -> ManifestError {
    let (line, column) = problem.place.unwrap_or((line, column));
    let subject = Box::new(subject);
    ManifestError { file: file.to_owned(), line, column, field: problem.field(), message: problem.message, subject }
}

/// The items of a List, or the node itself.
fn items(node: &Node) -> Vec<&Node> {
    match (node.get("kind").map(|kind| &kind.value), node.get("items").map(|items| &items.value)) {
        (Some(Value::Text(kind)), Some(Value::List(items))) if kind == "List" => items.iter().collect(),
        _ => vec![node],
    }
}

/// The object in a node.
fn object(node: &Node) -> Result<Object, Problem> {
    let kind = kind(node)?;
    let mut object = match kind {
        Kind::Service => Object::Service(typed_with_meta::<Service>(node)?),
        Kind::EndpointSlice => Object::EndpointSlice(typed_with_meta(node)?),
        Kind::ServiceExport => Object::ServiceExport(typed_spec(node)?),
        Kind::Link => Object::Link(typed_spec(node)?),
        Kind::ClusterTrafficPolicy => Object::ClusterTrafficPolicy(typed_spec(node)?),
        Kind::ExportPolicy => Object::ExportPolicy(typed_spec(node)?),
    };
    let metadata = object.metadata_mut();
    if !kind.is_namespaced() {
        metadata.namespace = None;
    } else if metadata.namespace.as_deref().unwrap_or_default().is_empty() {
        metadata.namespace = Some(DEFAULT_NAMESPACE.to_owned());
    }
    object.validate().map_err(|error| broken_rule(node, error))?;
    Ok(object)
}

/// The kind of a node, after its apiVersion is checked.
fn kind(node: &Node) -> Result<Kind, Problem> {
    let text = |key: &str| -> Result<(&Node, &str), Problem> {
        match node.get(key) {
            Some(found) => match &found.value {
                Value::Text(text) => Ok((found, text)),
                other => Err(Problem::new(format!("found {other}, expected text")).at(found).inside_key(key)),
            },
            None => Err(Problem::new("is missing: every resource begins with apiVersion and kind").inside_key(key)),
        }
    };
    if !matches!(node.value, Value::Map(_)) {
        return Err(Problem::new(format!(
            "found {}, expected a resource with apiVersion, kind and metadata",
            node.value
        )));
    }
    let (place, name) = text("kind")?;
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == name) else {
        let message = if name == "Site" {
            "a Site belongs into site.yaml, not among the manifests".to_owned()
        } else {
            let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("`{name}` is not a kind that is read here: use {}", known.join(", "))
        };
        return Err(Problem::new(message).at(place).inside_key("kind"));
    };
    let (place, version) = text("apiVersion")?;
    if !kind.api_versions().contains(&version) {
        let message = format!("`{version}` is not known for {kind}: write {}", kind.api_versions().join(" or "));
        return Err(Problem::new(message).at(place).inside_key("apiVersion"));
    }
    Ok(kind)
}

fn site(node: &Node) -> Result<Site, Problem> {
    for (key, expected) in [("kind", "Site"), ("apiVersion", API_VERSION)] {
        match node.get(key) {
            Some(Node { value: Value::Text(text), .. }) if text == expected => {}
            Some(found) => {
                let message = format!("found {}, expected `{expected}`", found.value);
                return Err(Problem::new(message).at(found).inside_key(key));
            }
            None => return Err(Problem::new(format!("is missing: write `{key}: {expected}`")).inside_key(key)),
        }
    }
    let site: Site = typed_with_meta(node)?;
    site.validate().map_err(|error| broken_rule(node, error))?;
    Ok(site)
}

/// Types that read apiVersion and kind themselves.
fn typed_with_meta<T: DeserializeOwned>(node: &Node) -> Result<T, Problem> {
    T::deserialize(typed::Typed::new(node))
}

/// Types that do not.
fn typed_spec<T: DeserializeOwned>(node: &Node) -> Result<T, Problem> {
    T::deserialize(typed::Typed::without_type_meta(node))
}

/// A broken rule, placed at the field or at the nearest thing above it that is there.
fn broken_rule(node: &Node, error: FieldError) -> Problem {
    let (line, column) = node.place_of(&error.field);
    Problem::of_field(error.field, (line, column), error.message)
}

#[cfg(test)]
mod tests;
