//! Single values of routes as people write them: durations, headers, expressions, shares. From the text to what it means, or to a
//! message that says how to mend it. Nothing here knows of any other value.

use std::sync::Arc;

use crate::mesh::{
    http::{self, HostMatch},
    values,
};

/// The longest duration that counts, in milliseconds: 30 days.
const LONGEST_MS: u64 = 30 * 24 * 3_600_000;
/// The longest text of a header, a path or an expression, in bytes.
const LONGEST_TEXT: usize = 4096;

/// A duration as Kubernetes and Istio write it, `1h30m`, `1.5s`, `250ms`; in milliseconds, rounded up.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let wrong = || {
        let value = values::quoted(text);
        format!("{value} is not a duration: write numbers with units, for example 1m30s or 250ms")
    };
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(0);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        total += number * unit_ms(unit).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.trim().is_empty() || total > LONGEST_MS as f64 {
        return Err(wrong());
    }
    Ok(total.ceil() as u64)
}

fn unit_ms(unit: &str) -> Option<f64> {
    match unit {
        "h" => Some(3_600_000.0),
        "m" => Some(60_000.0),
        "s" => Some(1_000.0),
        "ms" => Some(1.0),
        "us" | "µs" => Some(1e-3),
        "ns" => Some(1e-6),
        _ => None,
    }
}

/// A header's name (RFC 9110 5.1), in lower case.
pub(super) fn header_name(text: &str) -> Result<Arc<str>, String> {
    let read = ::http::HeaderName::from_bytes(text.as_bytes());
    read.map(|name| name.as_str().into()).map_err(|_| {
        let value = values::quoted(text);
        format!("{value} is not the name of a header: use letters, digits and `-`")
    })
}

/// Whether a waypoint changes a header of this name: those that frame a message are the connection's own.
pub(super) fn is_changeable(name: &str) -> bool {
    ::http::HeaderName::from_bytes(name.as_bytes()).is_ok_and(|name| http::is_changeable(&name))
}

/// A header's value.
pub(super) fn header_value(text: &str) -> Result<Arc<str>, String> {
    let fits = text.len() <= LONGEST_TEXT && ::http::HeaderValue::from_str(text).is_ok();
    fits.then(|| text.into()).ok_or_else(|| {
        let value = values::quoted(text);
        format!("{value} cannot be a header's value: use at most {LONGEST_TEXT} letters, no line ends")
    })
}

/// A text that is looked for or put in somewhere.
pub(super) fn text(text: &str) -> Result<Arc<str>, String> {
    match text.len() {
        0 => Err("is empty: write something, or remove it".into()),
        1..=LONGEST_TEXT => Ok(text.into()),
        _ => Err(format!("is too long: use at most {LONGEST_TEXT} bytes")),
    }
}

/// A text that may be empty.
pub(super) fn any_text(text: &str) -> Result<Arc<str>, String> {
    match text {
        "" => Ok(Arc::default()),
        text => self::text(text),
    }
}

/// An absolute path.
pub(super) fn path(text: &str) -> Result<Arc<str>, String> {
    if !text.starts_with('/') {
        let value = values::quoted(text);
        return Err(format!("{value} is not a path: begin it with `/`"));
    }
    self::text(text)
}

/// An expression in RE2's syntax that must match the whole of a text.
pub(super) fn expression(text: &str) -> Result<Arc<str>, String> {
    let read = self::text(text)?;
    let why = match http::check_expression(text) {
        Ok(()) => return Ok(read),
        Err(why) => why,
    };
    let value = values::quoted(text);
    Err(format!(
        "{value} is not an expression that can be used, {why}: write a smaller one in RE2's syntax"
    ))
}

/// A method (RFC 9110 9.1): case counts.
pub(super) fn method(text: &str) -> Result<Arc<str>, String> {
    let read = ::http::Method::from_bytes(text.as_bytes());
    read.map(|method| method.as_str().into())
        .map_err(|_| format!("{} is not a method: write GET, POST...", values::quoted(text)))
}

/// `http` or `https`.
pub(super) fn scheme(text: &str) -> Result<Arc<str>, String> {
    match text.to_ascii_lowercase().as_str() {
        "http" => Ok("http".into()),
        "https" => Ok("https".into()),
        _ => Err(values::one_of(text, "http or https")),
    }
}

/// A host with or without port, as an authority.
pub(super) fn authority(text: &str) -> Result<Arc<str>, String> {
    let fits = text.len() <= 260 && text.parse::<::http::uri::Authority>().is_ok() && !text.contains('@');
    fits.then(|| text.to_ascii_lowercase().into())
        .ok_or_else(|| format!("{} is not a host: write a name", values::quoted(text)))
}

/// A name, or `*.` and a name.
pub(super) fn host(text: &str) -> Result<HostMatch, String> {
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "*" => Ok(HostMatch::Any),
        host => {
            let read = values::hostname(host)?;
            Ok(match host.strip_prefix('*') {
                Some(under) => HostMatch::Under(under.into()),
                None => HostMatch::Exact(read),
            })
        }
    }
}

/// The status of a response that a waypoint gives itself.
pub(super) fn status(text: &str) -> Result<u16, String> {
    number(text, 200..=599, "a status of HTTP: write 200 to 599")
}

/// A whole number of this range.
pub(super) fn number<T>(text: &str, range: std::ops::RangeInclusive<T>, what: &str) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd,
{
    let read = text.parse().ok().filter(|number| range.contains(number));
    read.ok_or_else(|| format!("{} is not {what}", values::quoted(text)))
}

/// A whole number; Istio's 32 bits.
pub(super) fn count(text: &str) -> Result<u32, String> {
    number(
        text,
        0..=i32::MAX as u32,
        "a count: write a whole number, 0 or more",
    )
}

/// A share in percent, as parts of 10,000.
pub(super) fn percent(text: &str) -> Result<u32, String> {
    let read: Option<f64> = text.parse().ok().filter(|it| (0.0..=100.0).contains(it));
    let share = read.map(|percent| (percent * 100.0).round() as u32);
    share.ok_or_else(|| format!("{} is not a share: write 0 to 100", values::quoted(text)))
}

/// `true` or `false`.
pub(super) fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| values::one_of(text, "true or false"))
}

/// A code of gRPC, by its number or its name.
pub(super) fn grpc_status(text: &str) -> Result<u16, String> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let named = NAMES.iter().position(|name| *name == text);
    let code = named.or_else(|| text.parse().ok().filter(|code| *code < NAMES.len()));
    code.and_then(|code| u16::try_from(code).ok()).ok_or_else(|| {
        format!(
            "{} is not a status of gRPC: write UNAVAILABLE, for example",
            values::quoted(text)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(duration(text).ok(), expect, "{text:?}");
        for (text, ms) in [
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("0.5s", 500),
            ("250ms", 250),
            ("0s", 0),
        ] {
            check(text, Some(ms));
        }
        check("1us", Some(1));
        check("0", Some(0));
        for text in [
            "", "10", "s", "1d", "-1s", "1s5", "1..5s", "9999999h", "NaNs", "é",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn expressions_are_whole_and_small() {
        assert!(expression("/a|/b").is_ok());
        for text in ["(", ")(", "a)(b", "", "\\w{1000}{1000}"] {
            assert!(expression(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares() {
        let check = |text: &str, expect: Option<u32>| assert_eq!(percent(text).ok(), expect, "{text:?}");
        check("0.1", Some(10));
        check("100", Some(10_000));
        check("100.1", None);
        check("-1", None);
        check("NaN", None);
    }
}
