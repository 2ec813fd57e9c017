//! `retries` of a VirtualService's rule.

use serde_json::Value;

use crate::{
    manifests::{Reader, rule::only, there, words},
    mesh::{
        Place,
        http::{Retry, RetryOn},
    },
};

/// Istio's first pause, in milliseconds; the longest is ten times the first.
const BACKOFF_MS: u64 = 25;
/// Attempts after the first, where a rule has `retries` and does not say how many.
const ATTEMPTS: u32 = 2;
/// What Istio tries again where nothing is said.
const ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

const FIELDS: [&str; 6] = [
    "attempts",
    "perTryTimeout",
    "retryOn",
    "retryRemoteLocalities",
    "retryIgnorePreviousHosts",
    "backoff",
];

/// Reads it, but for the timeout of an attempt.
pub(super) fn retry(value: &Value, place: &Place<'_>, reader: &mut Reader<'_>) -> Retry {
    only(value, &FIELDS, place, reader);
    let backoff = reader.optional(value, "backoff", place, words::duration);
    let backoff_ms = backoff.unwrap_or(BACKOFF_MS);
    let on = reader.optional(value, "retryOn", place, words::any_text);
    let on = on.filter(|it| !it.is_empty()).unwrap_or_else(|| ON.into());
    Retry {
        attempts: match there(value, "attempts") {
            None => ATTEMPTS,
            // One that cannot be read is no reason to try for ever.
            Some(_) => reader
                .optional(value, "attempts", place, words::count)
                .unwrap_or(0),
        },
        on: retry_on(&on, &place.field("retryOn"), reader),
        backoff_ms,
        max_backoff_ms: backoff_ms.saturating_mul(10),
        avoid_tried: reader
            .optional(value, "retryIgnorePreviousHosts", place, words::truth)
            .unwrap_or(true),
    }
}

/// Envoy's names of failures, with commas between, and statuses among them.
fn retry_on(text: &str, place: &Place<'_>, reader: &mut Reader<'_>) -> RetryOn {
    let mut on = RetryOn::default();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if !note(word, &mut on) {
            let message = format!("{word:.64} is not known here, and nothing is tried again for it");
            reader.warn(place, "RetryIgnored", message);
        }
    }
    on
}

/// Whether it is known.
fn note(word: &str, on: &mut RetryOn) -> bool {
    match word {
        // Envoy counts what never was answered among both.
        "5xx" | "gateway-error" => {
            on.server_error |= word == "5xx";
            on.gateway_error |= word == "gateway-error";
            (on.connect_failure, on.refused_stream, on.reset) = (true, true, true);
        }
        "reset" | "reset-before-request" => on.reset = true,
        "connect-failure" => on.connect_failure = true,
        "refused-stream" => on.refused_stream = true,
        "retriable-4xx" => on.retriable_4xx = true,
        // The statuses stand beside it.
        "retriable-status-codes" => {}
        "cancelled" => on.grpc.push(1),
        "deadline-exceeded" => on.grpc.push(4),
        "resource-exhausted" => on.grpc.push(8),
        "internal" => on.grpc.push(13),
        "unavailable" => on.grpc.push(14),
        status => match words::status(status) {
            Ok(status) => on.statuses.push(status),
            Err(_) => return false,
        },
    }
    true
}
