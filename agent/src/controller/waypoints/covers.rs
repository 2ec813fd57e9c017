//! PURE. Whether an object, as the API has it, says all that was applied: the API adds fields, writes quantities in a form of its
//! own, and admission adds to lists.

use serde_json::Value;

/// Whether what is there says all that is wanted.
pub(super) fn covers(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            let quantities = key == "requests" || key == "limits";
            match there.get(key) {
                Some(there) if quantities => same_quantities(there, wanted),
                Some(there) => covers(there, wanted),
                None => is_nothing(wanted),
            }
        }),
        // Somebody's sidecar or variable beside ours is no drift; arguments are whole.
        (Value::Array(there), Value::Array(wanted)) if wanted.iter().all(Value::is_object) => wanted
            .iter()
            .all(|wanted| there.iter().any(|it| covers(it, wanted))),
        (there, wanted) => there == wanted,
    }
}

/// What the API leaves out.
fn is_nothing(wanted: &Value) -> bool {
    match wanted {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(it) => !it,
        Value::Number(_) => false,
    }
}

fn same_quantities(there: &Value, wanted: &Value) -> bool {
    let (Value::Object(there), Value::Object(wanted)) = (there, wanted) else {
        return there == wanted;
    };
    let same = |there: &Value, wanted: &Value| match (quantity(there), quantity(wanted)) {
        (Some(there), Some(wanted)) => (there - wanted).abs() <= wanted.abs() * 1e-9,
        _ => there == wanted,
    };
    wanted
        .iter()
        .all(|(key, wanted)| there.get(key).is_some_and(|there| same(there, wanted)))
}

/// How much a quantity of Kubernetes is.
fn quantity(value: &Value) -> Option<f64> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let digits = text
        .find(|it: char| !it.is_ascii_digit() && it != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let unit = match unit {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        _ => return None,
    };
    Some(number * unit)
}
