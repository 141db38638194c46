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

use linkspan_runtime::text;

/// A field is cut after this many bytes as printed. The longest honest field is a DNS name (253 bytes) or a list of a
/// few addresses; a peer's error text is the only thing that comes near.
const FIELD_BYTES: usize = 1024;

/// Whether standard output is a terminal that takes colour.
pub(crate) fn colour() -> bool {
    io::stdout().is_terminal()
}

/// Writes `page` to standard output at once. A reader that has gone away (`linkspan ... | head`) is no error.
pub(crate) fn print(page: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(page.as_bytes()).and_then(|()| out.flush()) {
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

/// One field, made harmless: what a terminal would obey is written as `\u001b`, more than 1 KiB is cut.
pub(crate) fn safe(field: &str) -> String {
    let shown = text::clean(field);
    if shown.len() <= FIELD_BYTES {
        return shown.into_owned();
    }
    // `clean` caps what it reads; its escapes can make that six times as long.
    format!("{}...", text::cut(&shown, FIELD_BYTES - "...".len()))
}

/// Several lines, each made harmless: the line feeds stay.
pub(crate) fn safe_lines(lines: &str) -> String {
    lines.split('\n').map(safe).collect::<Vec<_>>().join("\n")
}

/// `1 service`, `2 services`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A path as a word that a shell takes as it is.
pub(crate) fn shell_word(word: &str) -> String {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-+:@%".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests;
