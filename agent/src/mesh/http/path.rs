//! One form for every path that means the same (RFC 3986 6.2.2), before routes and policies look at it: what two readers
//! of one path could read differently is either made equal or refused. Not here: rewriting (`rewrite`).

use std::borrow::Cow;

use thiserror::Error;

/// How much is made equal (Istio's `pathNormalization`). Each does what the one before does, and more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Normalization {
    /// Escapes only: `%41` is `A`, `%2f` is `%2F`, as far as all of them are escapes. Nothing is refused.
    None,
    /// `\` is `/`; `.` and `..` are followed.
    Base,
    /// `//` is `/`.
    #[default]
    MergeSlashes,
    /// `%2F` and `%5C` are `/`, before anything else.
    DecodeAndMergeSlashes,
}

/// Why a path is none. The request is answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadPath {
    /// It does not begin with `/`.
    #[error("the path does not begin with a slash")]
    NotAbsolute,
    /// A `%` without two hexadecimal digits.
    #[error("the path has a percent sign that no two hexadecimal digits follow")]
    Escape,
    /// A NUL, which ends a text for some readers.
    #[error("the path has a NUL")]
    Nul,
    /// More `..` than there are elements before.
    #[error("the path leads out of its root")]
    AboveRoot,
}

/// The one form of a path. Done again it changes nothing. `*` (of `OPTIONS *`) stays.
///
/// # Errors
/// It is no path, or readers could disagree about it.
pub fn normalize(path: &str, how: Normalization) -> Result<Cow<'_, str>, BadPath> {
    if path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    if how == Normalization::None {
        return Ok(canonical_escapes(path));
    }
    let (mut path, decode) = (Cow::Borrowed(path), how == Normalization::DecodeAndMergeSlashes);
    check(&path)?;
    if path.contains('%') || !path.is_ascii() {
        path = Cow::Owned(with_escapes(&path, decode));
    }
    if path.contains('\\') {
        path = Cow::Owned(path.replace('\\', "/"));
    }
    if !path.starts_with('/') {
        return Err(BadPath::NotAbsolute);
    }
    if path.contains("/.") {
        path = Cow::Owned(without_dots(&path)?);
    }
    if how >= Normalization::MergeSlashes && path.contains("//") {
        path = Cow::Owned(merged(&path));
    }
    Ok(path)
}

/// As routes and policies write paths: with the escapes that a normalised path has. With a `%` that is no escape the whole
/// stays as it is: what follows must not become one.
pub(in crate::mesh) fn canonical_escapes(path: &str) -> Cow<'_, str> {
    if (path.is_ascii() && !path.contains('%')) || check(path) == Err(BadPath::Escape) {
        return Cow::Borrowed(path);
    }
    Cow::Owned(with_escapes(path, false))
}

/// An escape that is none before NUL, of which either is enough.
fn check(path: &str) -> Result<(), BadPath> {
    let bytes = path.as_bytes();
    let escapes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%');
    let mut nul = bytes.contains(&0);
    for (at, _) in escapes {
        let (byte, _) = bytes.get(at..).and_then(escaped).ok_or(BadPath::Escape)?;
        nul |= byte == 0;
    }
    if nul { Err(BadPath::Nul) } else { Ok(()) }
}

/// The byte that a text's beginning stands for, where it is `%` and two digits, and what comes after it.
pub(super) fn escaped(text: &[u8]) -> Option<(u8, &[u8])> {
    let [b'%', high, low, rest @ ..] = text else {
        return None;
    };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    Some((byte, rest))
}

/// Escapes in the form that RFC 3986 6.2.2 gives them: none for unreserved characters, upper case for others; and every
/// byte that is not ASCII escaped.
fn with_escapes(path: &str, decode_slashes: bool) -> String {
    let mut bytes = path.as_bytes();
    let mut out = String::with_capacity(path.len());
    while let [first, rest @ ..] = bytes {
        let (byte, was_escaped, rest) = match escaped(bytes) {
            Some((byte, rest)) => (byte, true, rest),
            None => (*first, false, rest),
        };
        let slash = decode_slashes && matches!(byte, b'/' | b'\\');
        if !byte.is_ascii() || (was_escaped && !is_unreserved(byte) && !slash) {
            escape(byte, &mut out);
        } else {
            out.push(char::from(byte));
        }
        bytes = rest;
    }
    out
}

/// RFC 3986 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

pub(super) fn escape(byte: u8, out: &mut String) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    out.push('%');
    out.push(DIGITS[usize::from(byte >> 4)]);
    out.push(DIGITS[usize::from(byte & 15)]);
}

/// RFC 3986 5.2.4, but that nothing leads above the root.
fn without_dots(path: &str) -> Result<String, BadPath> {
    let mut kept: Vec<&str> = Vec::new();
    let mut elements = path.split('/').skip(1).peekable();
    while let Some(element) = elements.next() {
        let last = elements.peek().is_none();
        match element {
            "." | ".." => {
                if element == ".." {
                    kept.pop().ok_or(BadPath::AboveRoot)?;
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(element),
        }
    }
    let mut path = String::with_capacity(path.len());
    for element in kept {
        path.push('/');
        path.push_str(element);
    }
    Ok(path)
}

fn merged(path: &str) -> String {
    let mut merged = String::with_capacity(path.len());
    for letter in path.chars() {
        if letter != '/' || !merged.ends_with('/') {
            merged.push(letter);
        }
    }
    merged
}

#[cfg(test)]
mod tests;
