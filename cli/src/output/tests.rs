use std::ffi::OsStr;
use std::time::Duration;

use serde_json::json;

use super::json::render;
use super::table::{Cell, Table};
use super::{FIELD_BYTES, safe, safe_lines};

/// What a hostile peer would put into a name.
const HOSTILE: &[&str] = &[
    "\x1b[2J\x1b]0;owned\x07",
    "a\r\nb\tc\0d",
    "\u{202e}gnp.exe",
    "\u{2066}x\u{2069}",
    "\u{009b}31m",
    "\u{7f}\u{85}\u{2028}\u{2029}",
    "\u{feff}bom\u{200f}marks",
];

fn assert_harmless(text: &str) {
    for character in text.chars() {
        assert!(character == '\n' || !character.is_control(), "control character {character:?} in {text:?}");
        assert!(
            !matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
        );
    }
}

#[test]
fn a_hostile_name_is_shown_not_obeyed() {
    for hostile in HOSTILE {
        let shown = safe(hostile);
        assert_harmless(&shown);
        assert!(!shown.contains('\n'));
        let mut table = Table::new(["NAME", "STATE"]);
        table.row([Cell::text(hostile), Cell::text("up").good()]);
        let rendered = table.render(false);
        assert_harmless(&rendered);
        assert_eq!(rendered.lines().count(), 2, "a name must not add a line: {rendered:?}");
        let document = render(&json!({ *hostile: [hostile] })).unwrap();
        assert_harmless(&document);
        let back: serde_json::Value = serde_json::from_str(&document).unwrap();
        assert_eq!(back[*hostile][0], **hostile, "JSON escapes keep the content");
    }
}

#[test]
fn a_huge_field_is_cut() {
    for unit in ["x", "é", "\x1b", "\u{202e}"] {
        let huge = unit.repeat(1 << 20);
        assert!(safe(&huge).len() <= FIELD_BYTES);
        let back: serde_json::Value = serde_json::from_str(&render(&json!([huge])).unwrap()).unwrap();
        assert!(back[0].as_str().unwrap().len() <= FIELD_BYTES);
    }
    assert_eq!(safe("plain"), "plain");
    assert_eq!(safe_lines("one\ntwo\x1b\n"), "one\ntwo\\u001b\n");
}

#[test]
fn columns_are_aligned_and_lines_end_clean() {
    let mut table = Table::new(["CLUSTER", "ALIVE", "NUM_SVC", "LATENCY"]);
    assert!(table.is_empty());
    table.row([Cell::text("east"), Cell::text("True").good(), Cell::number("12"), Cell::number("3ms")]);
    table.row([Cell::text("a-longer-name"), Cell::text("False").bad(), Cell::number("1")]);
    assert_eq!(
        table.render(false),
        "CLUSTER        ALIVE  NUM_SVC  LATENCY\n\
         east           True        12      3ms\n\
         a-longer-name  False        1  -\n"
    );
}

#[test]
fn colour_only_when_asked_and_without_effect_on_widths() {
    let mut table = Table::new(["A", "B"]);
    table.row([Cell::text("up").good(), Cell::text("x")]);
    table.row([Cell::text("down").bad(), Cell::text("y").warning()]);
    assert!(!table.render(false).contains('\x1b'));
    let coloured = table.render(true);
    assert!(coloured.contains("\x1b[32mup\x1b[0m    x\n"));
    assert!(coloured.contains("\x1b[31mdown\x1b[0m  \x1b[33my\x1b[0m\n"));
}

#[test]
fn words_for_a_shell() {
    use super::shell_word;
    assert_eq!(shell_word("/srv/east-1.d"), "/srv/east-1.d");
    assert_eq!(shell_word("my site"), "'my site'");
    assert_eq!(shell_word("it's"), "'it'\\''s'");
    assert_eq!(shell_word(""), "''");
}

#[test]
fn colour_is_for_terminals_whose_user_wants_it() {
    let coloured = |terminal, no_color: Option<&str>, term: Option<&str>| {
        super::coloured(terminal, no_color.map(OsStr::new), term.map(OsStr::new))
    };
    assert!(coloured(true, None, Some("xterm")) && coloured(true, Some(""), None));
    assert!(!coloured(false, None, Some("xterm")));
    assert!(!coloured(true, Some("1"), Some("xterm")));
    assert!(!coloured(true, None, Some("dumb")));
}

#[test]
fn a_reader_that_has_gone_is_no_error_and_a_full_disk_is_one() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    super::write(b"page", writer).unwrap();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    super::write(b"page", full).unwrap_err();
}

#[tokio::test]
async fn a_reader_that_goes_is_noticed_without_a_write() {
    let (reader, writer) = std::io::pipe().unwrap();
    let gone = super::closed(writer);
    tokio::pin!(gone);
    assert!(futures::poll!(&mut gone).is_pending());
    drop(reader);
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), gone).await, Ok(Some(())));
    let file = tempfile::tempfile().unwrap();
    assert_eq!(super::closed(file).await, None, "a file has no reader");
}

#[test]
fn a_cause_is_said_once() {
    let error = anyhow::anyhow!("root.key: no key").context("authority: root.key: no key").context("cannot start");
    assert_eq!(super::causes(&error), "cannot start: authority: root.key: no key");
}

#[test]
fn one_is_not_many() {
    assert_eq!([0, 1, 2].map(|count| super::counted(count, "service")), ["0 services", "1 service", "2 services"]);
}
