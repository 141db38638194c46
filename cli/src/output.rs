//! What a command prints: tables and JSON on standard output, errors on standard error.
//!
//! In: values of our own and names that a peer chose. Out: text that no terminal can be tricked with.
//! Never does: write a control character other than the line feed, a bidirectional override, or a field of more than
//! 1 KiB, whatever a peer put into a name; colour anything that is not a terminal.

/// One JSON document.
pub(crate) mod json;
/// Aligned columns.
pub(crate) mod table;

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

/// A field is cut after this many bytes. The longest honest field is a DNS name (253 bytes) or a list of a few
/// addresses; a peer's error text is the only thing that comes near.
const FIELD_BYTES: usize = 1024;

/// Whether standard output is a terminal that takes colour.
pub(crate) fn colour() -> bool {
    io::stdout().is_terminal()
}

/// Writes `text` to standard output at once. A reader that has gone away (`linkspan ... | head`) is no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Writes an error with its causes to standard error: `linkspan: what: why: why`.
pub(crate) fn error(error: &anyhow::Error) {
    let mut line = String::from("linkspan: ");
    for (depth, cause) in error.chain().enumerate() {
        let separator = if depth == 0 { "" } else { ": " };
        let _infallible = write!(line, "{separator}{cause}");
    }
    line.push('\n');
    // Where standard error is gone too, there is nobody left to tell.
    drop(io::stderr().lock().write_all(safe_lines(&line).as_bytes()));
}

/// One field, made harmless: control characters and bidirectional overrides are written as `\u{..}`, more than 1 KiB is
/// cut with `...`.
pub(crate) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(FIELD_BYTES));
    for character in text.chars() {
        let harmless = !is_harmful(character);
        let width = if harmless {
            character.len_utf8()
        } else {
            "\\u{10ffff}".len()
        };
        if out.len() + width > FIELD_BYTES - "...".len() {
            out.push_str("...");
            break;
        }
        if harmless {
            out.push(character);
        } else {
            out.extend(character.escape_unicode());
        }
    }
    out
}

/// Several lines, each made harmless: the line feeds stay.
pub(crate) fn safe_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        out.push_str(&safe(line));
    }
    out
}

/// Whether a character may do more to a terminal than show itself: C0, DEL and C1 controls, line and paragraph
/// separators, marks and overrides of the writing direction, invisible joiners and tags.
fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{00AD}' | '\u{061C}' | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
            | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}')
}

#[cfg(test)]
mod tests;
