//! What a command prints: tables and JSON on standard output, errors on standard error.
//!
//! In: values of our own and names that a peer chose. Out: text that no terminal can be tricked with.
//! Never does: write a control character other than the line feed, a bidirectional override, or a field of more than
//! 1 KiB, whatever a peer put into a name; colour anything that is not a terminal.

/// One JSON document.
pub(crate) mod json;
/// Aligned columns.
pub(crate) mod table;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use anyhow::Context;
use linkspan_runtime::text;
use tokio::io::Interest;
use tokio::net::unix::pipe;

/// A field is cut after this many bytes as printed. The longest honest field is a DNS name (253 bytes) or a list of a
/// few addresses; a peer's error text is the only thing that comes near.
const FIELD_BYTES: usize = 1024;

/// Whether standard output is a terminal that takes colour.
pub(crate) fn colour() -> bool {
    coloured(io::stdout().is_terminal(), std::env::var_os("NO_COLOR").as_deref(), std::env::var_os("TERM").as_deref())
}

/// Colour is for terminals, unless the user says no (<https://no-color.org>: set and not empty) or it knows no colours.
fn coloured(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty) && term.is_none_or(|term| term != "dumb")
}

/// Writes `page` to standard output at once. A reader that has gone away (`linkspan ... | head`) is no error.
pub(crate) fn print(page: &str) -> anyhow::Result<()> {
    write(page.as_bytes(), io::stdout().lock()).context("cannot write to standard output")
}

fn write(page: &[u8], mut out: impl Write) -> io::Result<()> {
    match out.write_all(page).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Says something beside the output, on standard error.
pub(crate) fn note(text: &str) {
    // Where standard error is gone too, there is nobody left to tell.
    drop(writeln!(io::stderr().lock(), "{}", safe_lines(text)));
}

/// Resolves when nobody reads standard output any more (`linkspan demo | head`). Never, where it is no pipe.
pub(crate) async fn reader_gone() {
    if closed(io::stdout()).await.is_none() {
        std::future::pending::<()>().await;
    }
}

/// Waits for the end of the other side of a pipe; `None` for what has no other side.
///
/// The kernel reports it without a write: a command that has nothing to say for hours must notice, too.
async fn closed(out: impl AsFd) -> Option<()> {
    let copy = out.as_fd().try_clone_to_owned().ok()?;
    // Unchecked, since the checking form makes standard output non-blocking, for everybody who shares it.
    let pipe = pipe::Sender::from_owned_fd_unchecked(copy).ok()?;
    pipe.ready(Interest::ERROR).await.ok().map(drop)
}

/// Writes an error with its causes to standard error: `linkspan: what: why: why`.
pub(crate) fn error(error: &anyhow::Error) {
    note(&format!("linkspan: {}", causes(error)));
}

/// An error with its causes, each said once: some errors repeat their source in their own words.
pub(crate) fn causes(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.is_empty() {
            said = cause;
        } else if !said.contains(&cause) {
            let _infallible = write!(said, ": {cause}");
        }
    }
    said
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
