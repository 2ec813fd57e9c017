//! Every path that a file names, in `use` or in place, with its line: `use a::{b, c::d}` is `a::b` and `a::c::d`.

use super::source::{Source, Token};

/// A path and where it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// From 1.
    pub(super) line: usize,
    /// How many inline modules it is in.
    pub(super) modules: usize,
    /// Its segments; a glob ends in `*`.
    pub(super) segments: Vec<String>,
}

/// All paths of a file, in its order.
pub(super) fn all(source: &Source) -> Vec<Named> {
    let mut reader = Reader {
        tokens: &source.tokens,
        at: 0,
        found: Vec::new(),
    };
    while let Some(token) = reader.peek() {
        if token.is("use") && !reader.tokens.get(reader.at + 1).is_some_and(|next| next.is("<")) {
            reader.at += 1;
            reader.tree(&[]);
        } else if token.symbol == ' ' {
            reader.path();
        } else {
            reader.at += 1;
        }
    }
    reader.found
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    found: Vec<Named>,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn eat(&mut self, symbol: char) -> bool {
        let there = self.peek().is_some_and(|token| token.symbol == symbol);
        self.at += usize::from(there);
        there
    }

    fn colons(&mut self) -> bool {
        let there = self
            .tokens
            .get(self.at..self.at + 2)
            .is_some_and(|two| two.iter().all(|token| token.symbol == ':'));
        self.at += if there { 2 } else { 0 };
        there
    }

    fn emit(&mut self, at: usize, segments: Vec<String>) {
        if let Some(Token { line, modules, .. }) = self.tokens.get(at) {
            self.found.push(Named {
                line: *line,
                modules: *modules,
                segments,
            });
        }
    }

    /// A path in place; a generic argument ends it, and what follows is read as another.
    fn path(&mut self) {
        let (start, mut segments) = (self.at, Vec::new());
        while let Some(token) = self.peek().filter(|token| token.symbol == ' ') {
            segments.push(token.word.clone());
            self.at += 1;
            if !self.colons() {
                break;
            }
        }
        self.emit(start, segments);
    }

    /// One branch of a `use`, up to its `,`, `}` or `;`.
    fn tree(&mut self, prefix: &[String]) {
        let (start, mut segments) = (self.at, prefix.to_vec());
        self.colons();
        loop {
            match self.peek() {
                Some(token) if token.symbol == ' ' => segments.push(token.word.clone()),
                Some(token) if token.is("*") => segments.push("*".into()),
                Some(token) if token.is("{") => return self.branches(&segments),
                _ => break,
            }
            self.at += 1;
            if !self.colons() {
                break;
            }
        }
        if self.peek().is_some_and(|token| token.is("as")) {
            self.at += 2;
        }
        self.emit(start, segments);
    }

    fn branches(&mut self, prefix: &[String]) {
        self.at += 1;
        while self.peek().is_some() && !self.eat('}') {
            let before = self.at;
            self.tree(prefix);
            self.eat(',');
            if self.at == before {
                self.at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &[&str]) {
        let source = Source::new("x.rs".into(), text.into());
        let found: Vec<_> = all(&source)
            .iter()
            .map(|named| named.segments.join("::"))
            .collect();
        assert_eq!(found, expect, "{text}");
    }

    #[test]
    fn use_trees_are_spread_out() {
        check("use a::b;", &["a::b"]);
        check(
            "use a::{self, b, c::{d, e as f}, g::*};",
            &["a::self", "a::b", "a::c::d", "a::c::e", "a::g::*"],
        );
        check("pub(crate) use crate::x::Y;", &["pub", "crate", "crate::x::Y"]);
        check("use ::a::b; c", &["a::b", "c"]);
    }

    #[test]
    fn paths_in_place_are_found() {
        check(
            "let x = crate::net::dial(std::fs::read);",
            &["let", "x", "crate::net::dial", "std::fs::read"],
        );
        check("Vec::<crate::a::B>::new()", &["Vec", "crate::a::B", "new"]);
        check("impl X + use<T> ;", &["impl", "X", "use", "T"]);
    }

    #[test]
    fn broken_code_ends() {
        check("use a::{b", &["a::b"]);
        check("use {{{;", &[""]);
    }
}
