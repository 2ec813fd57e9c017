//! Kubernetes' protobuf, read only, and of the few objects that Go's typed clients send when Helm keeps its releases.
//! What is answered is JSON, which they take. Field numbers: `generated.proto` of k8s.io/api and k8s.io/apimachinery.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

/// What a body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// What a field holds.
#[derive(Clone, Copy)]
enum Holds {
    Text,
    Texts,
    Int,
    Bool,
    /// From text to text.
    Map,
    /// From text to bytes.
    Bytes,
    Message(&'static [Field]),
}

/// Number, name and content.
type Field = (u64, &'static str, Holds);

const METADATA: &[Field] = &[
    (1, "name", Holds::Text),
    (2, "generateName", Holds::Text),
    (3, "namespace", Holds::Text),
    (5, "uid", Holds::Text),
    (6, "resourceVersion", Holds::Text),
    (11, "labels", Holds::Map),
    (12, "annotations", Holds::Map),
    (14, "finalizers", Holds::Texts),
];

const SECRET: &[Field] = &[
    (1, "metadata", Holds::Message(METADATA)),
    (2, "data", Holds::Bytes),
    (3, "type", Holds::Text),
    (4, "stringData", Holds::Map),
    (5, "immutable", Holds::Bool),
];

const CONFIG_MAP: &[Field] = &[
    (1, "metadata", Holds::Message(METADATA)),
    (2, "data", Holds::Map),
    (3, "binaryData", Holds::Bytes),
    (4, "immutable", Holds::Bool),
];

const NAMESPACE: &[Field] = &[(1, "metadata", Holds::Message(METADATA))];

const DELETE_OPTIONS: &[Field] = &[
    (1, "gracePeriodSeconds", Holds::Int),
    (
        2,
        "preconditions",
        Holds::Message(&[(1, "uid", Holds::Text), (2, "resourceVersion", Holds::Text)]),
    ),
    (4, "propagationPolicy", Holds::Text),
    (5, "dryRun", Holds::Texts),
];

/// What wraps every object: its type and its bytes.
const TYPE: &[Field] = &[(1, "apiVersion", Holds::Text), (2, "kind", Holds::Text)];

/// The object of a body; `None` for a kind that is not among the few, and for what is broken.
pub(super) fn read(body: &[u8]) -> Option<Value> {
    let envelope = parts(body.strip_prefix(MAGIC)?)?;
    let of = |number: u64| envelope.iter().find(|part| part.0 == number).map(|part| part.1);
    let mut value = message(TYPE, bytes(of(1)?)?)?;
    let fields = match value["kind"].as_str()? {
        "Secret" => SECRET,
        "ConfigMap" => CONFIG_MAP,
        "Namespace" => NAMESPACE,
        "DeleteOptions" => DELETE_OPTIONS,
        _ => return None,
    };
    let raw = of(2).map_or(Some(&[][..]), bytes)?;
    if let (Some(value), Value::Object(inner)) = (value.as_object_mut(), message(fields, raw)?) {
        value.extend(inner);
    }
    Some(value)
}

/// What a part of a message is on the wire.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn bytes(wire: Wire<'_>) -> Option<&[u8]> {
    match wire {
        Wire::Bytes(bytes) => Some(bytes),
        Wire::Number(_) => None,
    }
}

/// The parts of a message and their numbers.
fn parts(mut rest: &[u8]) -> Option<Vec<(u64, Wire<'_>)>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let wire = match key & 7 {
            0 => Wire::Number(varint(&mut rest)?),
            1 => Wire::Bytes(take(&mut rest, 8)?),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                Wire::Bytes(take(&mut rest, length)?)
            }
            5 => Wire::Bytes(take(&mut rest, 4)?),
            _ => return None,
        };
        found.push((key >> 3, wire));
    }
    Some(found)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// The known fields of a message; an empty text is one that was not set.
fn message(fields: &[Field], body: &[u8]) -> Option<Value> {
    let mut value = Value::Object(Map::new());
    for (number, wire) in parts(body)? {
        let Some((_, name, holds)) = fields.iter().find(|field| field.0 == number) else {
            continue;
        };
        match (holds, wire) {
            (Holds::Text, Wire::Bytes([])) => {}
            (Holds::Text, Wire::Bytes(bytes)) => value[*name] = text(bytes)?,
            (Holds::Texts, Wire::Bytes(bytes)) => match value[*name].as_array_mut() {
                Some(list) => list.push(text(bytes)?),
                None => value[*name] = json!([text(bytes)?]),
            },
            (Holds::Int, Wire::Number(number)) => value[*name] = number.into(),
            (Holds::Bool, Wire::Number(number)) => value[*name] = (number != 0).into(),
            (Holds::Map, Wire::Bytes(entry)) => {
                let (key, own) = pair(entry)?;
                value[*name][key] = text(own)?;
            }
            (Holds::Bytes, Wire::Bytes(entry)) => {
                let (key, own) = pair(entry)?;
                value[*name][key] = STANDARD.encode(own).into();
            }
            (Holds::Message(fields), Wire::Bytes(bytes)) => value[*name] = message(fields, bytes)?,
            _ => return None,
        }
    }
    Some(value)
}

/// An entry of a map.
fn pair(entry: &[u8]) -> Option<(&str, &[u8])> {
    let parts = parts(entry)?;
    let of = |number: u64| {
        parts
            .iter()
            .find(|part| part.0 == number)
            .and_then(|part| bytes(part.1))
    };
    let key = std::str::from_utf8(of(1).unwrap_or_default()).ok()?;
    Some((key, of(2).unwrap_or_default()))
}

fn text(bytes: &[u8]) -> Option<Value> {
    std::str::from_utf8(bytes).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part that holds bytes.
    fn part(number: u8, bytes: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    #[test]
    fn a_secret_is_read() {
        let labels = part(11, &[part(1, b"owner"), part(2, b"helm")].concat());
        let metadata = part(1, &[part(1, b"s"), labels].concat());
        let data = part(2, &[part(1, b"k"), part(2, &[0xff])].concat());
        let secret = [metadata, data, part(3, b"Opaque"), vec![5 << 3, 1]].concat();
        let kind = part(1, &[part(1, b"v1"), part(2, b"Secret")].concat());
        let body = [MAGIC, &kind, &part(2, &secret)].concat();
        let read = read(&body);
        let expect = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "labels": {"owner": "helm"}},
            "data": {"k": "/w=="}, "type": "Opaque", "immutable": true,
        });
        assert_eq!(read, Some(expect));
        for cut in MAGIC.len() + 1..body.len() {
            assert_ne!(super::read(&body[..cut]), read, "cut at {cut}");
        }
        assert_eq!(super::read(b"k8s"), None);
    }
}
