//! Tokens of service accounts: made, looked at, refused. They look like JWTs and carry the claims; the signature is a
//! number that only this server knows.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{access::User, clock, store::State};

/// Who issues tokens, and whom they are for if nobody else is named.
pub(super) const ISSUER: &str = "https://kubernetes.default.svc";
/// How long a review's outcome is remembered, though the pod may be gone since.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Every token that was issued.
#[derive(Default)]
pub(super) struct Tokens {
    issued: HashMap<String, Issued>,
}

struct Issued {
    user: User,
    namespace: String,
    account: (String, String),
    audiences: Vec<String>,
    expires: SystemTime,
    /// Name and uid of the pod that it is bound to.
    pod: Option<(String, String)>,
    /// When it was last found good, on the server's clock.
    passed: Option<Duration>,
}

/// What a token is asked for.
pub(super) struct Wanted<'a> {
    pub(super) namespace: &'a str,
    /// Name and uid of the service account.
    pub(super) account: (&'a str, &'a str),
    pub(super) audiences: Vec<String>,
    pub(super) lasts: Duration,
    pub(super) pod: Option<&'a Value>,
    pub(super) now: SystemTime,
}

/// A new token and when it ends.
pub(super) fn issue(state: &mut State, wanted: &Wanted<'_>) -> (String, String) {
    let (name, uid) = wanted.account;
    let jti = state.random.uid();
    let seconds = |at: SystemTime| {
        at.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };
    let mut extra = vec![("authentication.kubernetes.io/credential-id", format!("JTI={jti}"))];
    let mut about = json!({"namespace": wanted.namespace, "serviceaccount": {"name": name, "uid": uid}});
    let bound = wanted.pod.map(|pod| bind(state, pod, &mut about, &mut extra));
    let expires = wanted.now + wanted.lasts;
    let subject = format!("system:serviceaccount:{}:{name}", wanted.namespace);
    let claims = json!({
        "aud": wanted.audiences, "exp": seconds(expires), "iat": seconds(wanted.now), "nbf": seconds(wanted.now),
        "iss": ISSUER, "jti": jti, "kubernetes.io": about, "sub": subject,
    });
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let signature = URL_SAFE_NO_PAD.encode(format!("{}{}", state.random.uid(), state.random.uid()));
    let token = format!(
        "{}.{}.{signature}",
        part(&json!({"alg": "RS256", "kid": "stand-in"})),
        part(&claims)
    );
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{}", wanted.namespace),
    ];
    let issued = Issued {
        user: User {
            name: subject,
            uid: uid.to_owned(),
            groups: groups
                .into_iter()
                .chain(["system:authenticated".to_owned()])
                .collect(),
            extra: extra
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        },
        namespace: wanted.namespace.to_owned(),
        account: (name.to_owned(), uid.to_owned()),
        audiences: wanted.audiences.clone(),
        expires,
        pod: bound,
        passed: None,
    };
    state.tokens.issued.insert(token.clone(), issued);
    (token, clock::stamp(expires))
}

/// Binds claims and what a review tells to a pod and its node.
fn bind(
    state: &State,
    pod: &Value,
    about: &mut Value,
    extra: &mut Vec<(&'static str, String)>,
) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let own = (text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"]));
    about["pod"] = json!({"name": own.0, "uid": own.1});
    if let Some(node) = pod["spec"]["nodeName"].as_str() {
        extra.push(("authentication.kubernetes.io/node-name", node.to_owned()));
        about["node"] = json!({"name": node});
        if let Some(found) = state.value("nodes", node) {
            let uid = text(&found["metadata"]["uid"]);
            about["node"]["uid"] = uid.as_str().into();
            extra.push(("authentication.kubernetes.io/node-uid", uid));
        }
    }
    extra.push(("authentication.kubernetes.io/pod-name", own.0.clone()));
    extra.push(("authentication.kubernetes.io/pod-uid", own.1.clone()));
    own
}

/// Who a token is, and for which of these audiences; or why it is refused, in the words of a review.
pub(super) fn review(
    state: &mut State,
    token: &str,
    audiences: &[String],
    (now, wall): (Duration, SystemTime),
) -> Result<(User, Vec<String>), String> {
    let Some(issued) = state.tokens.issued.get(token) else {
        return Err(match claims_of(token) {
            true => "[invalid bearer token, go-jose/go-jose: error in cryptographic primitive]".into(),
            false => "invalid bearer token".into(),
        });
    };
    let common: Vec<_> = audiences
        .iter()
        .filter(|asked| issued.audiences.contains(asked))
        .cloned()
        .collect();
    if common.is_empty() {
        return Err(format!(
            "[invalid bearer token, token audiences {} is invalid for the target audiences {}]",
            quoted(&issued.audiences),
            quoted(audiences)
        ));
    }
    if issued.expires <= wall {
        return Err("[invalid bearer token, service account token has expired]".into());
    }
    let remembered = issued.passed.is_some_and(|passed| now < passed + REMEMBERED);
    if !remembered && !still_there(state, issued) {
        return Err("[invalid bearer token, service account token has been invalidated]".into());
    }
    let user = issued.user.clone();
    if !remembered && let Some(issued) = state.tokens.issued.get_mut(token) {
        issued.passed = Some(now);
    }
    Ok((user, common))
}

/// Whether the account and the pod are those that the token was made for.
fn still_there(state: &State, issued: &Issued) -> bool {
    let is = |table: &str, (name, uid): &(String, String)| {
        let found = state.value(table, &format!("{}/{name}", issued.namespace));
        found.is_some_and(|found| found["metadata"]["uid"] == uid.as_str())
    };
    is("serviceaccounts", &issued.account) && issued.pod.as_ref().is_none_or(|pod| is("pods", pod))
}

/// Whether it says that this server issued it.
fn claims_of(token: &str) -> bool {
    let claims = token
        .split('.')
        .nth(1)
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims: Option<Value> = claims.and_then(|claims| serde_json::from_slice(&claims).ok());
    claims.is_some_and(|claims| claims["iss"] == ISSUER)
}

/// As Go prints a list of strings.
fn quoted(all: &[String]) -> String {
    let all: Vec<_> = all.iter().map(|one| format!("\"{one}\"")).collect();
    format!("[{}]", all.join(" "))
}
