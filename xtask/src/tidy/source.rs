//! A Rust file as tidy sees it: its text, its tokens with their lines, its comments, and which lines are tests. A
//! scanner, not a parser: it knows strings, characters and comments well enough to leave them out, no more.

use std::ops::Range;

/// One file.
pub(super) struct Source {
    /// From the root of the checkout, with `/`.
    pub(super) path: String,
    /// All of it.
    pub(super) text: String,
    /// Its code, without comments; a string or character is the symbol `"`.
    pub(super) tokens: Vec<Token>,
    /// Its comments, each with its line.
    pub(super) comments: Vec<(usize, String)>,
    /// The lines of `#[cfg(test)] mod … { }`.
    tests: Vec<Range<usize>>,
}

/// A word (identifier, keyword or number) or a single symbol.
#[derive(Debug)]
pub(super) struct Token {
    /// From 1.
    pub(super) line: usize,
    /// The word; empty for a symbol.
    pub(super) word: String,
    /// The symbol; a space for a word.
    pub(super) symbol: char,
    /// How many inline modules it is in.
    pub(super) modules: usize,
}

impl Token {
    /// Whether it is this word or symbol.
    pub(super) fn is(&self, text: &str) -> bool {
        if self.word.is_empty() {
            text.chars().eq([self.symbol])
        } else {
            self.word == text
        }
    }
}

impl Source {
    /// Scans a file.
    pub(super) fn new(path: String, text: String) -> Self {
        let (mut tokens, comments) = Scanner::new(&text).run();
        count_modules(&mut tokens);
        let tests = test_modules(&tokens);
        Self {
            path,
            text,
            tokens,
            comments,
            tests,
        }
    }

    /// Whether a line is part of tests: of an inline module, or because the whole file is.
    pub(super) fn is_test(&self, line: usize) -> bool {
        self.is_test_file() || self.tests.iter().any(|lines| lines.contains(&line))
    }

    /// Whether the whole file is tests.
    pub(super) fn is_test_file(&self) -> bool {
        self.path.starts_with("tests/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.contains("/tests/")
    }

    /// Whether the tokens at an index are these.
    pub(super) fn matches(&self, at: usize, pattern: &[&str]) -> bool {
        starts_with(&self.tokens, at, pattern)
    }
}

fn starts_with(tokens: &[Token], at: usize, pattern: &[&str]) -> bool {
    let tokens = tokens.get(at..).unwrap_or_default();
    tokens.len() >= pattern.len() && pattern.iter().zip(tokens).all(|(text, token)| token.is(text))
}

/// The index of the brace that closes the one at `open`; the last token if it is not closed.
pub(super) fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.symbol {
            '{' => depth += 1,
            '}' if depth == 1 => return i,
            '}' => depth -= 1,
            _ => {}
        }
    }
    tokens.len().saturating_sub(1)
}

fn count_modules(tokens: &mut [Token]) {
    for i in 0..tokens.len() {
        let inline = tokens[i].is("mod") && tokens.get(i + 2).is_some_and(|token| token.is("{"));
        if inline {
            let end = closing(tokens, i + 2);
            tokens[i + 2..end].iter_mut().for_each(|token| token.modules += 1);
        }
    }
}

fn test_modules(tokens: &[Token]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for i in 0..tokens.len() {
        if !starts_with(tokens, i, &["#", "[", "cfg", "(", "test", ")", "]"]) {
            continue;
        }
        // Other attributes may stand between.
        let module = (i + 7..tokens.len()).find(|at| tokens[*at].is("mod") || tokens[*at].is("fn"));
        if let Some(at) = module.filter(|at| starts_with(&tokens[*at + 2..], 0, &["{"])) {
            found.push(tokens[i].line..tokens[closing(tokens, at + 2)].line + 1);
        }
    }
    found
}

/// Goes over the characters once.
struct Scanner {
    chars: Vec<char>,
    at: usize,
    line: usize,
    tokens: Vec<Token>,
    comments: Vec<(usize, String)>,
}

impl Scanner {
    fn new(text: &str) -> Self {
        Self {
            chars: text.chars().collect(),
            at: 0,
            line: 1,
            tokens: Vec::new(),
            comments: Vec::new(),
        }
    }

    fn run(mut self) -> (Vec<Token>, Vec<(usize, String)>) {
        while let Some(c) = self.peek(0) {
            match (c, self.peek(1)) {
                ('/', Some('/')) => self.line_comment(),
                ('/', Some('*')) => self.block_comment(),
                ('"', _) => self.string(),
                ('\'', _) => self.quote(),
                _ if c.is_alphanumeric() || c == '_' => self.word(),
                _ => {
                    if !c.is_whitespace() {
                        self.push(String::new(), c);
                    }
                    self.advance();
                }
            }
        }
        (self.tokens, self.comments)
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn advance(&mut self) {
        if self.peek(0) == Some('\n') {
            self.line += 1;
        }
        self.at += 1;
    }

    fn push(&mut self, word: String, symbol: char) {
        self.tokens.push(Token {
            line: self.line,
            word,
            symbol,
            modules: 0,
        });
    }

    fn line_comment(&mut self) {
        let start = self.at;
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.at += 1;
        }
        self.comments
            .push((self.line, self.chars[start..self.at].iter().collect()));
    }

    /// Block comments nest. Each of its lines is a comment of its own.
    fn block_comment(&mut self) {
        let (mut depth, mut text) = (0, String::new());
        while let Some(c) = self.peek(0) {
            match (c, self.peek(1)) {
                ('/', Some('*')) => depth += 1,
                ('*', Some('/')) => depth -= 1,
                _ => {}
            }
            if c == '\n' {
                self.comments.push((self.line, std::mem::take(&mut text)));
            } else {
                text.push(c);
            }
            self.advance();
            if depth == 0 {
                self.advance();
                break;
            }
        }
        self.comments.push((self.line, text));
    }

    fn string(&mut self) {
        self.push(String::new(), '"');
        self.advance();
        while let Some(c) = self.peek(0) {
            self.advance();
            match c {
                '\\' => self.advance(),
                '"' => break,
                _ => {}
            }
        }
    }

    /// `r"…"`, `r#"…"#`: ends at a quote with as many hashes.
    fn raw_string(&mut self, hashes: usize) {
        self.push(String::new(), '"');
        (0..=hashes).for_each(|_| self.advance());
        while let Some(c) = self.peek(0) {
            let ends = c == '"' && (1..=hashes).all(|i| self.peek(i) == Some('#'));
            self.advance();
            if ends {
                self.at += hashes;
                break;
            }
        }
    }

    /// A character, or a lifetime.
    fn quote(&mut self) {
        let lifetime =
            self.peek(1).is_some_and(|c| c.is_alphabetic() || c == '_') && self.peek(2) != Some('\'');
        self.advance();
        if lifetime {
            while self.peek(0).is_some_and(|c| c.is_alphanumeric() || c == '_') {
                self.advance();
            }
            return;
        }
        self.push(String::new(), '"');
        if self.peek(0) == Some('\\') {
            self.advance();
        }
        self.advance();
        while self.peek(0).is_some_and(|c| c != '\'') {
            self.advance();
        }
        self.advance();
    }

    fn word(&mut self) {
        let start = self.at;
        while self.peek(0).is_some_and(|c| c.is_alphanumeric() || c == '_') {
            self.at += 1;
        }
        let word: String = self.chars[start..self.at].iter().collect();
        let raw = word.ends_with('r') && ["r", "br", "cr"].contains(&word.as_str());
        let hashes = (0..).take_while(|i| self.peek(*i) == Some('#')).count();
        match self.peek(hashes) {
            Some('"') if raw => self.raw_string(hashes),
            Some('"') if hashes == 0 && ["b", "c"].contains(&word.as_str()) => self.string(),
            Some('\'') if hashes == 0 && word == "b" => self.quote(),
            _ => self.push(word, ' '),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        let source = Source::new("x.rs".into(), text.into());
        let words = source.tokens.iter().map(|token| match token.symbol {
            ' ' => token.word.clone(),
            symbol => symbol.to_string(),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_strings_and_characters_are_not_code() {
        assert_eq!(words("a // b\nc /* d /* e */ f */ g"), "a c g");
        assert_eq!(
            words(r##"x("unsafe \" fn", r#"a " b"#, b"c", '{', b'}', '\'', '\u{7f}') y"##),
            "x ( \" , \" , \" , \" , \" , \" , \" ) y"
        );
        assert_eq!(words("fn f<'a>(x: &'a str) {}"), "fn f < > ( x : & str ) { }");
    }

    #[test]
    fn lines_are_right_after_strings_and_comments() {
        let source = Source::new("x.rs".into(), "/* 1\n2 */ \"3\n\\\n\" r#\"\n\"# end".into());
        assert_eq!(source.tokens.last().map(|token| token.line), Some(5));
        assert_eq!(source.comments[0].0, 1);
    }

    #[test]
    fn test_modules_are_known() {
        let source = Source::new(
            "x.rs".into(),
            "fn a() {}\n#[cfg(test)]\n#[x]\nmod tests {\n{}\n}\nfn b() {}".into(),
        );
        let tests: Vec<_> = (1..=7).filter(|line| source.is_test(*line)).collect();
        assert_eq!(tests, [2, 3, 4, 5, 6]);
    }
}
