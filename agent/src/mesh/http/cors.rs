//! Cross-origin requests: what a browser is answered. As the Fetch standard has it, with Istio's choice for what no origin
//! allows.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};

use super::{
    Cors, CorsOrigin, RequestHead,
    text::{BadExpression, Text},
};

/// What a rule's [`Cors`] says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsAnswer {
    /// Nothing: it goes on.
    Nothing,
    /// It was a browser's question: answered by the waypoint with 200 and these headers. Without `access-control-allow-origin`
    /// among them the browser may not ask.
    Preflight(HeaderMap),
    /// It goes on, and its response has these headers ([`put_cors`]).
    Response(HeaderMap),
}

/// A response's headers, with these in place of those that the app has set.
pub fn put_cors(response: &mut HeaderMap, cors: &HeaderMap) {
    let ours = [
        ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ACCESS_CONTROL_EXPOSE_HEADERS,
    ];
    for name in ours {
        response.remove(name);
    }
    for (name, value) in cors {
        let _full = response.try_append(name.clone(), value.clone());
    }
}

/// Who is asked: the origins of a [`Cors`], to be compared.
#[derive(Debug)]
pub(super) enum Origin {
    Any,
    Is(Text),
    Wildcard(Box<str>, Box<str>),
}

impl Origin {
    pub(super) fn new(origin: &CorsOrigin) -> Result<Self, BadExpression> {
        Ok(match origin {
            CorsOrigin::Any => Self::Any,
            CorsOrigin::Is(text) => Self::Is(Text::new(text)?),
            CorsOrigin::Wildcard(start, end) => Self::Wildcard((**start).into(), (**end).into()),
        })
    }

    fn allows(&self, origin: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Is(text) => text.matches(origin),
            Self::Wildcard(start, end) => {
                let rest = origin.strip_prefix(start.as_bytes());
                let middle = rest.and_then(|rest| rest.strip_suffix(end.as_bytes()));
                // The star is a part of a host's name.
                middle
                    .is_some_and(|middle| !middle.is_empty() && !middle.iter().any(|it| b"/:@".contains(it)))
            }
        }
    }
}

/// What a request is answered.
pub(super) fn answer(cors: &Cors, origins: &[Origin], head: &RequestHead<'_>) -> CorsAnswer {
    let Some(origin) = head.headers.get(ORIGIN) else {
        return CorsAnswer::Nothing;
    };
    let asked = head.headers.get(ACCESS_CONTROL_REQUEST_METHOD);
    let preflight = asked.filter(|_| *head.method == Method::OPTIONS);
    let allowed = origins.iter().find(|it| it.allows(origin.as_bytes()));
    let mut headers = HeaderMap::new();
    if let Some(by) = allowed {
        allow_origin(cors, by, origin, &mut headers);
    }
    match (preflight, allowed) {
        (Some(_), None) if cors.forward_unmatched => CorsAnswer::Nothing,
        (Some(_), None) => CorsAnswer::Preflight(headers),
        (Some(method), Some(_)) => {
            preflight_headers(cors, method, head.headers, &mut headers);
            CorsAnswer::Preflight(headers)
        }
        (None, None) => CorsAnswer::Nothing,
        (None, Some(_)) => {
            list(ACCESS_CONTROL_EXPOSE_HEADERS, &cors.expose_headers, &mut headers);
            CorsAnswer::Response(headers)
        }
    }
}

/// `*` where anybody may, but not with credentials, for which the Fetch standard wants the origin by name.
fn allow_origin(cors: &Cors, by: &Origin, origin: &HeaderValue, headers: &mut HeaderMap) {
    if matches!(by, Origin::Any) && !cors.allow_credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        return;
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.insert(VARY, HeaderValue::from_static("origin"));
    if cors.allow_credentials {
        let yes = HeaderValue::from_static("true");
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
    }
}

fn preflight_headers(cors: &Cors, method: &HeaderValue, asked: &HeaderMap, headers: &mut HeaderMap) {
    allow(
        cors,
        ACCESS_CONTROL_ALLOW_METHODS,
        &cors.allow_methods,
        Some(method),
        headers,
    );
    let wanted = asked.get(ACCESS_CONTROL_REQUEST_HEADERS);
    allow(
        cors,
        ACCESS_CONTROL_ALLOW_HEADERS,
        &cors.allow_headers,
        wanted,
        headers,
    );
    if let Some(age) = cors.max_age_seconds {
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age));
    }
}

/// A star means nothing with credentials: then what was asked for is what is allowed.
fn allow(
    cors: &Cors,
    name: HeaderName,
    values: &[std::sync::Arc<str>],
    asked: Option<&HeaderValue>,
    headers: &mut HeaderMap,
) {
    let star = values.iter().any(|value| **value == *"*");
    match asked {
        Some(asked) if star && cors.allow_credentials => {
            headers.insert(name, asked.clone());
        }
        _ => list(name, values, headers),
    }
}

fn list(name: HeaderName, values: &[std::sync::Arc<str>], headers: &mut HeaderMap) {
    if let Ok(value) = HeaderValue::from_str(&values.join(", "))
        && !values.is_empty()
    {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
