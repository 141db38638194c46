//! Text that came from somebody else, made safe to print.
//!
//! A peer, a client or a manifest chooses names that end up in logs, tables and JSON. Printed raw they can move the
//! cursor, forge a second line or turn the reading direction around. Everything that leaves through a log line, the
//! admin port or the CLI passes through here.
//!
//! - In: any text.
//! - Out: the same text, where every control character (C0, DEL, C1), every line and paragraph separator and every
//!   bidirectional control is written as `\u00XX`, and nothing is longer than its cap.
//! - Never does: fail, or change printable text.
//! - Numbers: [`FIELD_MAX`].

use std::borrow::Cow;
use std::fmt::{self, Write};

use serde::Serialize;

/// Longest a single printed field may be, in bytes of the input (before escaping). Long enough for a SPIFFE ID's
/// practical length and a full URL path, short enough that a table or a log line stays readable.
pub const FIELD_MAX: usize = 1024;

/// What stands where text was cut.
const CUT: char = '…';

/// Whether `c` may not be printed as it is.
#[must_use]
pub const fn is_unsafe(c: char) -> bool {
    matches!(c,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}'          // C0, DEL, C1
        | '\u{61c}' | '\u{200e}' | '\u{200f}'              // Arabic letter mark, left-to-right and right-to-left marks
        | '\u{2028}' | '\u{2029}'                          // line and paragraph separators
        | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' // embeddings, overrides, isolates
        | '\u{feff}')
}

/// Displays text safely: unsafe characters escaped, cut after [`FIELD_MAX`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clean<'a>(pub &'a str);

impl fmt::Display for Clean<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = cut(self.0, FIELD_MAX);
        escape_into(f, shown)?;
        if shown.len() < self.0.len() { f.write_char(CUT) } else { Ok(()) }
    }
}

/// [`Clean`] as text; borrows when there was nothing to change.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.len() <= FIELD_MAX && !text.chars().any(is_unsafe) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(Clean(text).to_string())
    }
}

/// The longest start of `text` of at most `max` bytes that does not split a character.
#[must_use]
pub fn cut(text: &str, max: usize) -> &str {
    let end = text.floor_char_boundary(max);
    text.get(..end).unwrap_or(text)
}

/// Writes `text` with every unsafe character as `\u00XX`; no cap.
///
/// # Errors
/// When `out` does.
pub fn escape_into(out: &mut impl Write, text: &str) -> fmt::Result {
    let mut rest = text;
    while let Some(at) = rest.find(is_unsafe) {
        let (plain, tail) = rest.split_at(at);
        out.write_str(plain)?;
        let mut chars = tail.chars();
        if let Some(c) = chars.next() {
            write!(out, "\\u{:04x}", u32::from(c))?;
        }
        rest = chars.as_str();
    }
    out.write_str(rest)
}

/// Compact JSON in which no unsafe character stands unescaped.
///
/// # Errors
/// When `value` refuses to be serialised.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    Ok(escape_json(serde_json::to_string(value)?, false))
}

/// Indented JSON in which no unsafe character but the line breaks of the indentation stands unescaped.
///
/// # Errors
/// When `value` refuses to be serialised.
pub fn json_pretty<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    Ok(escape_json(serde_json::to_string_pretty(value)?, true))
}

/// Escapes what serde_json leaves (DEL, C1, bidirectional controls). They can only stand inside strings of a JSON text,
/// and all lie below U+10000, so `\uXXXX` in their place is the same JSON value.
fn escape_json(text: String, keep_newlines: bool) -> String {
    let unsafe_here = |c: char| is_unsafe(c) && !(keep_newlines && c == '\n');
    if !text.contains(unsafe_here) {
        return text;
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if unsafe_here(c) {
            // Writing to a String cannot fail.
            write!(out, "\\u{:04x}", u32::from(c)).ok();
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &str = "a\u{1b}[2Jb\r\nc\u{202e}d\u{2066}e\u{85}f\u{7f}g\u{0}h\u{2028}i";

    #[test]
    fn nothing_unsafe_survives() {
        let shown = Clean(NASTY).to_string();
        assert!(!shown.chars().any(is_unsafe), "{shown}");
        assert!(shown.starts_with("a\\u001b[2Jb\\u000d\\u000ac\\u202ed"));
        assert_eq!(clean(NASTY), shown);
    }

    #[test]
    fn plain_text_is_borrowed() {
        assert!(matches!(clean("größe 東京"), Cow::Borrowed(_)));
    }

    #[test]
    fn long_text_is_cut_on_a_character() {
        let long = "é".repeat(1 << 20);
        let shown = Clean(&long).to_string();
        assert!(shown.len() <= FIELD_MAX + CUT.len_utf8());
        assert!(shown.ends_with(CUT));
    }

    #[test]
    fn json_stays_the_same_value() {
        let value = serde_json::json!({ "name": NASTY, "n": 1 });
        let compact = json(&value).expect("serialises");
        assert!(!compact.chars().any(is_unsafe));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&compact).expect("parses"), value);
        let pretty = json_pretty(&value).expect("serialises");
        assert!(!pretty.chars().any(|c| is_unsafe(c) && c != '\n'));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&pretty).expect("parses"), value);
    }
}
