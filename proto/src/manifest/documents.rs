//! A file's documents, so that one that cannot be parsed does not take the others along.
//!
//! A line that is `---`, alone or with white space behind it, begins a document wherever it stands, even inside a block
//! scalar; `...` ends one (YAML 1.2.2 section 9.1.2). `-----BEGIN CERTIFICATE-----` is neither.

/// One document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Its text, markers included.
    pub(super) text: &'a str,
    /// The number of its first line in the file, from 1.
    pub(super) first_line: usize,
}

/// Cuts a file into documents.
pub(super) fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    // Lines begin and end at characters, so the range is always there.
    let piece = |from, to, first_line| Document { text: text.get(from..to).unwrap_or_default(), first_line };
    let (mut start, mut first_line, mut position) = (0, 1, 0);
    // Whether the present document has nothing yet but comments and directives, which belong to a `---` behind them.
    let mut only_prefix = true;
    for (line, number) in text.split_inclusive('\n').zip(1..) {
        let end = position + line.len();
        if is_marker(line, "---") && !only_prefix {
            documents.push(piece(start, position, first_line));
            (start, first_line) = (position, number);
        } else if is_marker(line, "...") {
            documents.push(piece(start, end, first_line));
            (start, first_line, only_prefix) = (end, number + 1, true);
            position = end;
            continue;
        }
        only_prefix = only_prefix && !is_marker(line, "---") && is_prefix(line);
        position = end;
    }
    if start < text.len() {
        documents.push(piece(start, text.len(), first_line));
    }
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Blank, a comment, or a directive.
fn is_prefix(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with(['#', '%'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<(&str, usize)> {
        split(text).into_iter().map(|document| (document.text, document.first_line)).collect()
    }

    #[test]
    fn markers_cut_and_lines_count() {
        assert_eq!(texts(""), []);
        assert_eq!(texts("a: 1"), [("a: 1", 1)]);
        assert_eq!(texts("a: 1\n---\nb: 2\n"), [("a: 1\n", 1), ("---\nb: 2\n", 2)]);
        assert_eq!(texts("# c\n---\na: 1\n--- # d\r\nb: 2"), [("# c\n---\na: 1\n", 1), ("--- # d\r\nb: 2", 4)]);
        assert_eq!(texts("---\n---\na: 1\n"), [("---\n", 1), ("---\na: 1\n", 2)]);
        assert_eq!(texts("a: 1\n...\n%YAML 1.2\n---\nb: 2\n"), [("a: 1\n...\n", 1), ("%YAML 1.2\n---\nb: 2\n", 3)]);
        assert_eq!(texts("\u{feff}a: 1\n"), [("a: 1\n", 1)]);
    }

    #[test]
    fn a_certificate_is_no_marker() {
        let text = "bundle: |\n  -----BEGIN CERTIFICATE-----\n-----BEGIN CERTIFICATE-----\n----\n";
        assert_eq!(texts(text), [(text, 1)]);
    }
}
