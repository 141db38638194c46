//! A document as a tree in which every value knows its place.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{MessageFormatter, Options, Spanned, UserMessageFormatter};

use super::typed::Problem;

/// The deepest nesting. Resources have about ten levels; each costs some stack.
const MAX_DEPTH: usize = 48;

/// The most values that aliases may add to a document.
const MAX_ALIAS_EVENTS: usize = 10_000;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// From 1.
    pub(super) line: usize,
    /// From 1.
    pub(super) column: usize,
    /// The value.
    pub(super) value: Value,
}

/// The key of a map's entry and its place.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) text: String,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// A whole number; `i128` holds all that YAML readers give.
    Whole(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// The longest piece of a value that a message repeats, in characters.
const SHOWN: usize = 80;

/// As error messages show it.
impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => formatter.write_str("nothing"),
            Self::Bool(value) => write!(formatter, "`{value}`"),
            Self::Whole(value) => write!(formatter, "the number `{value}`"),
            Self::Float(value) => write!(formatter, "the number `{value}`"),
            Self::Text(text) => write!(formatter, "`{}`", shown(text)),
            Self::List(_) => formatter.write_str("a list"),
            Self::Map(_) => formatter.write_str("a map"),
        }
    }
}

/// The beginning of a text, on one line.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

impl Node {
    /// The value at `key`, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(found, _)| found.text == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The place of the field at `path`, or of the nearest thing above it that is there.
    pub(super) fn place_of(&self, path: &str) -> (usize, usize) {
        let mut node = self;
        let mut rest = path;
        while !rest.is_empty() {
            let (next, behind) = step(node, rest);
            match next {
                Some(next) => node = next,
                None => break,
            }
            rest = behind;
        }
        (node.line, node.column)
    }
}

/// One step down `path`: the child, and the path behind it.
fn step<'a, 'p>(node: &'a Node, path: &'p str) -> (Option<&'a Node>, &'p str) {
    let path = path.strip_prefix('.').unwrap_or(path);
    if let Some(inner) = path.strip_prefix('[') {
        let (inside, behind) = inner.split_once(']').unwrap_or((inner, ""));
        if let Some(key) = inside.strip_prefix('"').and_then(|key| key.strip_suffix('"')) {
            return (node.get(key), behind);
        }
        let child = match (&node.value, inside.parse::<usize>()) {
            (Value::List(nodes), Ok(index)) => nodes.get(index),
            _ => None,
        };
        return (child, behind);
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    let (key, behind) = path.split_at(end);
    (node.get(key), behind)
}

/// Parses one document whose first line has this number.
pub(super) fn read(text: &str, first_line: usize) -> Result<Node, Problem> {
    let mut options = Options::default();
    options.with_snippet = false;
    // YAML 1.1's `yes` and `on` stay text, so that nothing is guessed.
    options.strict_booleans = true;
    if let Some(budget) = &mut options.budget {
        budget.max_depth = MAX_DEPTH;
    }
    options.alias_limits.max_total_replayed_events = MAX_ALIAS_EVENTS;
    match serde_saphyr::from_str_with_options::<Node>(text, options) {
        Ok(mut node) => {
            node.shift(first_line - 1);
            Ok(node)
        }
        Err(error) => {
            let error = error.without_snippet();
            let place =
                error.location().map(|place| (to_usize(place.line()) + first_line - 1, to_usize(place.column())));
            // The place is ours to show: without the offset it would be wrong.
            let message = UserMessageFormatter.format_message(error);
            let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            let mut problem = Problem::new(format!("not readable as YAML: {message}"));
            problem.place = place;
            Err(problem)
        }
    }
}

impl Node {
    /// Moves all places down by so many lines.
    fn shift(&mut self, lines: usize) {
        self.line += lines;
        match &mut self.value {
            Value::List(nodes) => nodes.iter_mut().for_each(|node| node.shift(lines)),
            Value::Map(entries) => entries.iter_mut().for_each(|(key, node)| {
                key.line += lines;
                node.shift(lines);
            }),
            _ => {}
        }
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let place = spanned.referenced;
        Ok(Self { line: to_usize(place.line()), column: to_usize(place.column()), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        let place = spanned.referenced;
        Ok(Self { line: to_usize(place.line()), column: to_usize(place.column()), text: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Whole(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Whole(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Whole(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(i128::try_from(value).map_or_else(|_| Value::Text(value.to_string()), Value::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = access.next_element()? {
            nodes.push(node);
        }
        Ok(Value::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}
