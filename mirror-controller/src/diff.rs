//! Two sorted maps side by side, in one pass. Versions of a state share their unchanged values, so finding what changed
//! costs a walk over pointers and never a comparison of contents.

use std::collections::BTreeMap;
use std::collections::btree_map::Iter;
use std::iter::Peekable;

/// One key of either map.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'l, 'r, K, L, R> {
    /// Only in the left map.
    Left(&'l K, &'l L),
    /// Only in the right map.
    Right(&'r K, &'r R),
    /// In both.
    Both(&'r K, &'l L, &'r R),
}

/// Walks both maps in the order of their keys.
pub(crate) fn walk<'l, 'r, K: Ord, L, R>(left: &'l BTreeMap<K, L>, right: &'r BTreeMap<K, R>) -> Walk<'l, 'r, K, L, R> {
    Walk { left: left.iter().peekable(), right: right.iter().peekable() }
}

/// See [`walk`].
pub(crate) struct Walk<'l, 'r, K, L, R> {
    left: Peekable<Iter<'l, K, L>>,
    right: Peekable<Iter<'r, K, R>>,
}

impl<'l, 'r, K: Ord, L, R> Iterator for Walk<'l, 'r, K, L, R> {
    type Item = Step<'l, 'r, K, L, R>;

    fn next(&mut self) -> Option<Self::Item> {
        let order = match (self.left.peek(), self.right.peek()) {
            (None, None) => return None,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((left, _)), Some((right, _))) => (*left).cmp(right),
        };
        match order {
            std::cmp::Ordering::Less => self.left.next().map(|(key, value)| Step::Left(key, value)),
            std::cmp::Ordering::Greater => self.right.next().map(|(key, value)| Step::Right(key, value)),
            std::cmp::Ordering::Equal => {
                let (_, left) = self.left.next()?;
                let (key, right) = self.right.next()?;
                Some(Step::Both(key, left, right))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_once_and_in_order() {
        let left = BTreeMap::from([(1, "a"), (2, "b"), (4, "d")]);
        let right = BTreeMap::from([(2, "B"), (3, "C"), (4, "d"), (5, "E")]);
        let steps: Vec<_> = walk(&left, &right).collect();
        assert_eq!(
            steps,
            [
                Step::Left(&1, &"a"),
                Step::Both(&2, &"b", &"B"),
                Step::Right(&3, &"C"),
                Step::Both(&4, &"d", &"d"),
                Step::Right(&5, &"E"),
            ]
        );
    }
}
