//! A tree read through serde into a type, with the path and place of whatever does not fit.
//!
//! Differs from other serde readers in three ways: numbers are checked against the range of their type in words that say
//! the range; "nothing" counts as an empty map or list, as Kubernetes has it; and a field that a type does not know is an
//! error for every type, also for those of Kubernetes, which would skip it. `prots:` must not silently mean "no ports".

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::tree::{Key, Node, Value, shown};

/// What does not fit, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Line and column, once known.
    pub(super) place: Option<(usize, usize)>,
    /// The path from the inside out.
    path: Vec<Segment>,
    /// What, and what would be right.
    pub(super) message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Key(String),
    Index(usize),
    /// A path that is already joined.
    Path(String),
}

impl Problem {
    /// A problem of the document as a whole.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { place: None, path: Vec::new(), message: message.into() }
    }

    /// A problem of the field at a path.
    pub(super) fn of_field(path: String, place: (usize, usize), message: String) -> Self {
        Self { place: Some(place), path: vec![Segment::Path(path)], message }
    }

    /// At the place of `node`, unless a nearer place is known.
    pub(super) fn at(mut self, node: &Node) -> Self {
        self.place.get_or_insert((node.line, node.column));
        self
    }

    /// Under a key.
    pub(super) fn inside_key(mut self, key: &str) -> Self {
        self.path.push(Segment::Key(key.to_owned()));
        self
    }

    fn inside_index(mut self, index: usize) -> Self {
        self.path.push(Segment::Index(index));
        self
    }

    /// The path, such as `spec.ports[0].port`.
    pub(super) fn field(&self) -> String {
        let mut field = String::new();
        for segment in self.path.iter().rev() {
            match segment {
                Segment::Index(index) => field.push_str(&format!("[{index}]")),
                Segment::Key(key) if key.contains(['.', '[', '"']) => field.push_str(&format!("[\"{}\"]", shown(key))),
                Segment::Key(text) | Segment::Path(text) => {
                    if !field.is_empty() {
                        field.push('.');
                    }
                    field.push_str(&shown(text));
                }
            }
        }
        field
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The most fields that a message lists.
const MAX_LISTED: usize = 12;

/// What to say about a field that a type with these fields does not know.
fn unknown(found: &str, fields: &[&str]) -> String {
    let nearest = fields.iter().map(|field| (distance(found, field), *field)).min();
    match nearest {
        None => "unknown field: nothing may stand here".to_owned(),
        Some((distance, field)) if distance <= 2 => format!("unknown field: did you mean `{field}`?"),
        Some(_) if fields.len() <= MAX_LISTED => format!("unknown field: known here are {}", listed(fields)),
        Some(_) => "unknown field: look for it in the documentation of this kind".to_owned(),
    }
}

/// How many characters differ (Levenshtein), letters of either case being equal; at most 64 characters are looked at.
pub(super) fn distance(one: &str, other: &str) -> usize {
    let chars = |text: &str| text.chars().take(64).map(|c| c.to_ascii_lowercase()).collect::<Vec<_>>();
    let (one, other) = (chars(one), chars(other));
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, left) in one.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, right) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

impl de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("found {found}, expected {expected}"))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(format!("found {found}, expected {expected}"))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new("is missing, and has no default").inside_key(field)
    }

    // The key's own reader adds the path.
    fn unknown_field(found: &str, expected: &'static [&'static str]) -> Self {
        Self::new(unknown(found, expected))
    }

    fn unknown_variant(found: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("`{}` is not one of {}", shown(found), listed(expected)))
    }
}

/// Reads one node.
#[derive(Clone, Copy)]
pub(super) struct Typed<'a> {
    node: &'a Node,
    /// Leave out apiVersion and kind, which the type does not know.
    skip_type_meta: bool,
    /// The key before this node and the fields of the type around it, should it know no such field.
    entry: Option<(&'a Key, &'static [&'static str])>,
}

impl<'a> Typed<'a> {
    pub(super) const fn new(node: &'a Node) -> Self {
        Self { node, skip_type_meta: false, entry: None }
    }

    pub(super) const fn without_type_meta(node: &'a Node) -> Self {
        Self { node, skip_type_meta: true, entry: None }
    }

    fn mismatch(&self, expected: &str) -> Problem {
        let hint = match (&self.node.value, expected) {
            (Value::Bool(_) | Value::Whole(_) | Value::Float(_), "text") => ": put it in quotes",
            (Value::Text(text), "a number") if text.parse::<f64>().is_ok() => ": leave out the quotes",
            _ => "",
        };
        Problem::new(format!("found {}, expected {expected}{hint}", self.node.value)).at(self.node)
    }

    /// Adds place, and the value unless the message has it.
    fn complete(&self, problem: Problem) -> Problem {
        let mut problem = problem;
        if problem.place.is_none()
            && let Value::Text(text) = &self.node.value
            && !problem.message.contains(&format!("`{}`", shown(text)))
        {
            problem.message = format!("`{}`: {}", shown(text), problem.message);
        }
        problem.at(self.node)
    }

    fn whole(&self, min: i128, max: i128) -> Result<i128, Problem> {
        let number = match self.node.value {
            Value::Whole(number) => number,
            Value::Float(number) => {
                let message = format!("{number} is not a whole number: expected one from {min} to {max}");
                return Err(Problem::new(message).at(self.node));
            }
            _ => return Err(self.mismatch("a number")),
        };
        if (min..=max).contains(&number) {
            Ok(number)
        } else {
            Err(Problem::new(format!("{number} is out of range: expected {min} to {max}")).at(self.node))
        }
    }

    fn map<V: Visitor<'a>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Problem> {
        let entries: &[(Key, Node)] = match &self.node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => return Err(self.mismatch("a map")),
        };
        let access = Entries { entries: entries.iter(), value: None, skip_type_meta: self.skip_type_meta, fields };
        visitor.visit_map(access).map_err(|problem| problem.at(self.node))
    }
}

/// Numbers, each within the range of its type.
macro_rules! whole {
    ($($deserialize:ident $visit:ident $type:ty),*) => {$(
        fn $deserialize<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Problem> {
            let number = self.whole(<$type>::MIN.into(), <$type>::MAX.into())?;
            let number = <$type>::try_from(number).map_err(|_| self.mismatch("a number"))?;
            visitor.$visit(number).map_err(|problem| self.complete(problem))
        }
    )*};
}

impl<'a> Deserializer<'a> for Typed<'a> {
    type Error = Problem;

    whole!(
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    );

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Whole(number) => match (i64::try_from(*number), u64::try_from(*number)) {
                (Ok(number), _) => visitor.visit_i64(number),
                (_, Ok(number)) => visitor.visit_u64(number),
                _ => Err(Problem::new(format!("{number} is out of range"))),
            },
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Text(text) => visitor.visit_borrowed_str(text),
            Value::List(_) => return self.deserialize_seq(visitor),
            Value::Map(_) => return self.map(&[], visitor),
        }
        .map_err(|problem| self.complete(problem))
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.node.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.mismatch("true or false")),
        }
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Text(text) => visitor.visit_borrowed_str(text).map_err(|problem| self.complete(problem)),
            _ => Err(self.mismatch("text")),
        }
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(self, _: &'static str, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Problem> {
        let nodes: &[Node] = match &self.node.value {
            Value::List(nodes) => nodes,
            Value::Null => &[],
            _ => return Err(self.mismatch("a list")),
        };
        visitor.visit_seq(Elements { nodes: nodes.iter().enumerate() }).map_err(|problem| problem.at(self.node))
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.map(&[], visitor)
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.map(fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        match &self.node.value {
            Value::Text(text) => {
                let variant: StrDeserializer<'_, Problem> = text.as_str().into_deserializer();
                visitor.visit_enum(variant).map_err(|problem| self.complete(problem))
            }
            _ => Err(self.mismatch("text")),
        }
    }

    /// Serde ignores what a type does not know; here that is an error.
    fn deserialize_ignored_any<V: Visitor<'a>>(self, _: V) -> Result<V::Value, Problem> {
        let Some((key, fields)) = self.entry else { return Err(self.mismatch("nothing here")) };
        let mut problem = Problem::new(unknown(&key.text, fields));
        problem.place = Some((key.line, key.column));
        Err(problem)
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// The elements of a list.
struct Elements<'a> {
    nodes: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'a> SeqAccess<'a> for Elements<'a> {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Problem> {
        let Some((index, node)) = self.nodes.next() else { return Ok(None) };
        seed.deserialize(Typed::new(node)).map(Some).map_err(|problem| problem.inside_index(index))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.nodes.len())
    }
}

/// The entries of a map.
struct Entries<'a> {
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<&'a (Key, Node)>,
    skip_type_meta: bool,
    fields: &'static [&'static str],
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Problem> {
        let skip = self.skip_type_meta;
        let entry = self.entries.find(|(key, _)| !(skip && matches!(key.text.as_str(), "apiVersion" | "kind")));
        let Some(entry) = entry else { return Ok(None) };
        self.value = Some(entry);
        let key = &entry.0;
        let text: StrDeserializer<'_, Problem> = key.text.as_str().into_deserializer();
        seed.deserialize(text).map(Some).map_err(|mut problem| {
            problem.place.get_or_insert((key.line, key.column));
            problem.inside_key(&key.text)
        })
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let Some((key, node)) = self.value.take() else {
            return Err(Problem::new("a value without a key"));
        };
        let typed = Typed { node, skip_type_meta: false, entry: Some((key, self.fields)) };
        seed.deserialize(typed).map_err(|problem| problem.inside_key(&key.text))
    }
}
