//! Texts and expressions in the form in which they are compared.

use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};

use super::TextMatch;

/// The longest expression, in bytes.
const LONGEST_EXPRESSION: usize = 4096;
/// What an expression may take once it is compiled, in bytes.
pub(super) const LARGEST_EXPRESSION: usize = 256 * 1024;

/// A [`TextMatch`].
#[derive(Debug)]
pub(super) enum Text {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Regex(Regex),
}

impl Text {
    pub(super) fn new(text: &TextMatch) -> Result<Self, BadExpression> {
        Ok(match text {
            TextMatch::Exact(text) => Self::Exact(text.clone()),
            TextMatch::Prefix(text) => Self::Prefix(text.clone()),
            TextMatch::Regex(text) => Self::Regex(whole(text)?),
        })
    }

    pub(super) fn matches(&self, text: &[u8]) -> bool {
        match self {
            Self::Exact(whole) => whole.as_bytes() == text,
            Self::Prefix(start) => text.starts_with(start.as_bytes()),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// An expression that cannot be used, and why.
pub(super) struct BadExpression {
    pub(super) expression: String,
    pub(super) why: String,
}

/// Whether an expression can be used.
///
/// # Errors
/// What is wrong with it.
pub fn check_expression(expression: &str) -> Result<(), String> {
    whole(expression).map(|_| ()).map_err(|bad| bad.why)
}

/// An expression that matches the whole text.
pub(super) fn whole(expression: &str) -> Result<Regex, BadExpression> {
    // By itself first: `a)|(b` would otherwise escape from the group that anchors it.
    anywhere(expression)?;
    compiled(expression, &anchored(expression))
}

/// What matches the whole where the expression by itself is one.
pub(super) fn anchored(expression: &str) -> String {
    format!(r"\A(?:{expression})\z")
}

/// An expression that matches a part of the text.
pub(super) fn anywhere(expression: &str) -> Result<Regex, BadExpression> {
    compiled(expression, expression)
}

/// Bytes rather than letters, as RE2's classes (`\d`, `\w`) are ASCII's; what needs Unicode (`\pL`) has it.
fn compiled(expression: &str, pattern: &str) -> Result<Regex, BadExpression> {
    let bad = |why: String| BadExpression {
        expression: expression.chars().take(128).collect(),
        why,
    };
    if expression.len() > LONGEST_EXPRESSION {
        return Err(bad(format!("it is longer than {LONGEST_EXPRESSION} bytes")));
    }
    let build = |unicode| {
        RegexBuilder::new(pattern)
            .unicode(unicode)
            .size_limit(LARGEST_EXPRESSION)
            .dfa_size_limit(LARGEST_EXPRESSION)
            .build()
    };
    build(false).or_else(|_| build(true)).map_err(|error| {
        let error = error.to_string();
        let last = error.lines().last().unwrap_or_default();
        bad(last.trim_start_matches("error: ").to_owned())
    })
}
