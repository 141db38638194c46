//! One JSON document on standard output, for programs.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;

use super::{is_harmful, safe};

/// Prints `value` as one indented JSON document.
pub(crate) fn print(value: &impl Serialize) -> anyhow::Result<()> {
    super::print(&render(value)?)?;
    Ok(())
}

/// The document as text, with a line feed at the end.
///
/// Strings keep their content: harmful characters are written as JSON escapes (`\u202e`), which is the same string to
/// a program. Only what is longer than 1 KiB is cut.
pub(crate) fn render(value: &impl Serialize) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(value)?;
    cut(&mut value);
    let text = serde_json::to_string_pretty(&value)?;
    let mut out = String::with_capacity(text.len() + 1);
    for character in text.chars() {
        // serde_json escapes C0 itself; what it writes of its own between the strings is ASCII and line feeds.
        if character != '\n' && is_harmful(character) {
            let mut units = [0_u16; 2];
            for unit in character.encode_utf16(&mut units) {
                let _infallible = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(character);
        }
    }
    out.push('\n');
    Ok(out)
}

/// Cuts strings that are too long to be honest.
fn cut(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > super::FIELD_BYTES => *text = safe(text),
        Value::Array(items) => items.iter_mut().for_each(cut),
        Value::Object(fields) => fields.values_mut().for_each(cut),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
