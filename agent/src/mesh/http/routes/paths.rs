//! Entries by their paths.

use std::{collections::BTreeMap, iter};

use regex::bytes::{Regex, RegexSet, RegexSetBuilder};
use rustc_hash::FxHashMap;

use super::{
    super::{
        PathMatch,
        path::canonical_escapes,
        text::{BadExpression, LARGEST_EXPRESSION, anchored, whole},
    },
    table::First,
};

/// So many expressions are tried one by one; more at once.
const FEW: usize = 8;
/// What all expressions of a table together may take, in bytes; where they take more they are tried one by one.
const LARGEST_SET: usize = 32 * LARGEST_EXPRESSION;

/// Positions of entries.
type Positions = Vec<usize>;

/// Entries, by what their paths must be.
#[derive(Debug, Default)]
pub(super) struct Paths {
    any: Positions,
    exact: FxHashMap<Box<str>, Positions>,
    under: Elements,
    starts: Starts,
    expressions: Expressions,
    /// In lower case.
    exact_lower: FxHashMap<Box<str>, Positions>,
    starts_lower: Starts,
}

impl Paths {
    /// In the order of positions.
    pub(super) fn add(&mut self, path: Option<&PathMatch>, position: usize) -> Result<(), BadExpression> {
        let lower = |text: &str| canonical_escapes(text).to_ascii_lowercase().into();
        let positions = match path {
            None => &mut self.any,
            Some(PathMatch::Regex(expression)) => return self.expressions.add(expression, position),
            Some(PathMatch::Exact(text)) => {
                let text = (*canonical_escapes(text)).into();
                self.exact.entry(text).or_default()
            }
            Some(PathMatch::Under(text)) => self.under.at(&canonical_escapes(text)),
            Some(PathMatch::Prefix(text)) => self.starts.at((*canonical_escapes(text)).into()),
            Some(PathMatch::ExactIgnoringCase(text)) => self.exact_lower.entry(lower(text)).or_default(),
            Some(PathMatch::PrefixIgnoringCase(text)) => self.starts_lower.at(lower(text)),
        };
        positions.push(position);
        Ok(())
    }

    /// After the last.
    pub(super) fn finish(&mut self) {
        self.starts.finish();
        self.starts_lower.finish();
        self.expressions.finish();
    }

    /// Every entry whose path is right.
    pub(super) fn offer(&self, first: &mut First<'_, '_>) {
        let asked = first.asked;
        let path = asked.head.path;
        first.offer(&self.any);
        if let Some(positions) = self.exact.get(path) {
            first.offer(positions);
        }
        self.under.of(path, |positions| first.offer(positions));
        self.starts.of(path).for_each(|positions| first.offer(positions));
        if !self.exact_lower.is_empty() || !self.starts_lower.sorted.is_empty() {
            let path = asked.lower_path();
            if let Some(positions) = self.exact_lower.get(path) {
                first.offer(positions);
            }
            self.starts_lower
                .of(path)
                .for_each(|positions| first.offer(positions));
        }
        self.expressions.offer(path, first);
    }
}

/// Paths under others, element by element.
#[derive(Debug, Default)]
struct Elements {
    positions: Positions,
    within: FxHashMap<Box<str>, Elements>,
}

impl Elements {
    /// Of a path; slashes at its end say nothing.
    fn at(&mut self, path: &str) -> &mut Positions {
        let path = path.trim_end_matches('/');
        let elements = path.strip_prefix('/').map(|path| path.split('/'));
        let mut node = self;
        for element in elements.into_iter().flatten() {
            node = node.within.entry(element.into()).or_default();
        }
        &mut node.positions
    }

    /// Those of every path that this one is under.
    fn of(&self, path: &str, mut found: impl FnMut(&Positions)) {
        let Some(path) = path.strip_prefix('/') else {
            return;
        };
        found(&self.positions);
        let mut node = self;
        for element in path.split('/') {
            let Some(next) = node.within.get(element) else {
                return;
            };
            found(&next.positions);
            node = next;
        }
    }
}

/// Beginnings of paths. Each knows the longest other one that it begins with, so that all beginnings of a path are found
/// from the last that is not after it.
#[derive(Debug, Default)]
struct Starts {
    unsorted: BTreeMap<Box<str>, Positions>,
    sorted: Vec<Start>,
}

#[derive(Debug)]
struct Start {
    text: Box<str>,
    positions: Positions,
    within: Option<usize>,
}

impl Starts {
    fn at(&mut self, text: Box<str>) -> &mut Positions {
        self.unsorted.entry(text).or_default()
    }

    fn finish(&mut self) {
        for (text, positions) in std::mem::take(&mut self.unsorted) {
            let within = self.longest(self.sorted.len(), &text);
            self.sorted.push(Start {
                text,
                positions,
                within,
            });
        }
    }

    /// The longest beginning of a text among those before a position, of which none is after the text.
    fn longest(&self, before: usize, text: &str) -> Option<usize> {
        let mut at = before.checked_sub(1);
        while let Some(start) = at.and_then(|at| self.sorted.get(at)) {
            if text.starts_with(&*start.text) {
                return at;
            }
            at = start.within;
        }
        None
    }

    /// Those of every beginning of a path.
    fn of(&self, path: &str) -> impl Iterator<Item = &Positions> {
        let after = self.sorted.partition_point(|start| *start.text <= *path);
        let longest = self.longest(after, path).and_then(|at| self.sorted.get(at));
        let shorter = |start: &&Start| self.sorted.get(start.within?);
        iter::successors(longest, shorter).map(|start| &start.positions)
    }
}

/// Expressions, in the order of their positions.
#[derive(Debug, Default)]
struct Expressions {
    all: Vec<(usize, String, Regex)>,
    together: Option<RegexSet>,
}

impl Expressions {
    fn add(&mut self, expression: &str, position: usize) -> Result<(), BadExpression> {
        self.all
            .push((position, anchored(expression), whole(expression)?));
        Ok(())
    }

    /// Paths have ASCII only, for which it does not matter whether classes are Unicode's.
    fn finish(&mut self) {
        if self.all.len() <= FEW {
            return;
        }
        let build = |unicode| {
            RegexSetBuilder::new(self.all.iter().map(|(_, pattern, _)| pattern))
                .unicode(unicode)
                .size_limit(LARGEST_SET)
                .build()
        };
        self.together = build(false).or_else(|_| build(true)).ok();
    }

    fn offer(&self, path: &str, first: &mut First<'_, '_>) {
        let Some((earliest, ..)) = self.all.first() else {
            return;
        };
        match &self.together {
            _ if !first.is_before(*earliest) => {}
            Some(together) => {
                for at in together.matches(path.as_bytes()) {
                    first.offer(
                        self.all
                            .get(at)
                            .map_or(&[], |(position, ..)| std::slice::from_ref(position)),
                    );
                }
            }
            None => {
                for (position, _, regex) in &self.all {
                    if !first.is_before(*position) {
                        return;
                    }
                    if regex.is_match(path.as_bytes()) {
                        first.offer(std::slice::from_ref(position));
                    }
                }
            }
        }
    }
}
