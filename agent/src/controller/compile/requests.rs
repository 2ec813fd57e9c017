//! What only a request has, in an AuthorizationPolicy: the parts of its values that agents never see.

use std::sync::Arc;

use crate::mesh::{
    http::{ConditionKey, PathPattern},
    values,
};

/// The longest way to a claim, in names.
const DEEPEST_CLAIM: usize = 16;

/// A path: whole, `start*`, `*end`, `*`, or one with `{*}` and `{**}` as elements.
pub(super) fn path(text: &str) -> Result<PathPattern, String> {
    if !text.contains(['{', '}']) {
        return values::pattern(text).map(PathPattern::Text);
    }
    let elements = || text.split('/').skip(1);
    let legal = |element: &str| matches!(element, "{*}" | "{**}") || !element.contains(['{', '}', '*']);
    let any_number = elements().filter(|element| *element == "{**}").count();
    if text.starts_with('/') && elements().all(legal) && any_number <= 1 {
        return Ok(PathPattern::Template(text.into()));
    }
    let value = values::quoted(text);
    Err(format!(
        "{value} is not a path: write {{*}} for one element, {{**}} once for any number, and no other `*`"
    ))
}

/// The key of a condition; none where it is known to Istio and no waypoint can look at it.
pub(super) fn condition_key(key: &str) -> Result<Option<ConditionKey>, String> {
    match key {
        "request.auth.principal" => return Ok(Some(ConditionKey::Principal)),
        "request.auth.audiences" => return Ok(Some(ConditionKey::Audiences)),
        "request.auth.presenter" => return Ok(Some(ConditionKey::Presenter)),
        "connection.sni" => return Ok(Some(ConditionKey::Sni)),
        _ => {}
    }
    if let Some(rest) = key.strip_prefix("request.headers") {
        return match &bracketed(rest)?[..] {
            [name] => Ok(Some(ConditionKey::Header(name.to_ascii_lowercase().into()))),
            _ => Err("names more than one header: write request.headers[name]".into()),
        };
    }
    match key.strip_prefix("request.auth.claims") {
        Some(rest) => Ok(Some(ConditionKey::Claim(bracketed(rest)?))),
        None => Ok(None),
    }
}

/// `[a][b]`.
fn bracketed(text: &str) -> Result<Vec<Arc<str>>, String> {
    let wrong = || format!("{} is not a name in brackets: write [name]", values::quoted(text));
    let inner = text
        .strip_prefix('[')
        .and_then(|it| it.strip_suffix(']'))
        .ok_or_else(wrong)?;
    let names: Vec<Arc<str>> = inner.split("][").map(Arc::from).collect();
    let legal = |name: &Arc<str>| !name.is_empty() && !name.contains(['[', ']']);
    if names.len() > DEEPEST_CLAIM || !names.iter().all(legal) {
        return Err(wrong());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_conditions() {
        let check = |key: &str, expect: Result<Option<ConditionKey>, ()>| {
            assert_eq!(condition_key(key).map_err(drop), expect, "{key}");
        };
        check(
            "request.headers[X-Api]",
            Ok(Some(ConditionKey::Header("x-api".into()))),
        );
        check(
            "request.auth.claims[a][b.c]",
            Ok(Some(ConditionKey::Claim(vec!["a".into(), "b.c".into()]))),
        );
        check("experimental.envoy.filters.x", Ok(None));
        for key in [
            "request.headers[]",
            "request.headers[a][b]",
            "request.headers",
            "request.auth.claims[a",
            "request.auth.claims[a]b]",
        ] {
            check(key, Err(()));
        }
    }

    #[test]
    fn paths() {
        let check = |text: &str, expect: Option<PathPattern>| assert_eq!(path(text).ok(), expect, "{text}");
        let template = |text: &str| Some(PathPattern::Template(text.into()));
        check("/a/{*}/b", template("/a/{*}/b"));
        check("/{**}", template("/{**}"));
        for text in ["/a{*}", "{*}", "/{**}/{**}", "/{*}/b*", "/{x}", "", "/a*b"] {
            check(text, None);
        }
    }
}
