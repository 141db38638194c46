//! One JSON document on standard output, for programs.

use linkspan_runtime::text;
use serde::Serialize;
use serde_json::Value;

use super::safe;

/// Prints `value` as one indented JSON document.
pub(crate) fn print(value: &impl Serialize) -> anyhow::Result<()> {
    super::print(&render(value)?)
}

/// The document as text, with a line feed at the end.
///
/// Strings keep their content: harmful characters are written as JSON escapes (`\u202e`), which is the same string to
/// a program. Only what is longer than 1 KiB is cut.
pub(crate) fn render(value: &impl Serialize) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(value)?;
    cut(&mut value);
    let mut page = text::json_pretty(&value)?;
    page.push('\n');
    Ok(page)
}

/// Cuts strings that are too long to be honest.
fn cut(value: &mut Value) {
    match value {
        Value::String(field) if field.len() > super::FIELD_BYTES => *field = safe(field),
        Value::Array(items) => items.iter_mut().for_each(cut),
        Value::Object(fields) => fields.values_mut().for_each(cut),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
