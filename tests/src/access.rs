//! Access lines, read back from an agent's log, text or JSON.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

/// The message of the one line that a finished connection leaves.
const MESSAGE: &str = "connection complete";

/// One finished connection, as the agent reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLine {
    /// `INFO` for a connection that ended well, `ERROR` for one refused or failed.
    pub level: String,
    fields: BTreeMap<String, String>,
}

impl AccessLine {
    /// A field by name, such as `src.identity`; empty where the line has none.
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// Whether the line has this field.
    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    /// A field that counts something; `None` where it is absent or no number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.fields.get(name)?.parse().ok()
    }

    /// Whether the connection ended well.
    pub fn is_ok(&self) -> bool {
        self.level == "INFO" && !self.has("error")
    }

    /// Whether every one of these fields has this value.
    pub fn matches(&self, wanted: &[(&str, &str)]) -> bool {
        wanted.iter().all(|(name, value)| self.field(name) == *value)
    }
}

impl fmt::Display for AccessLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.level)?;
        self.fields
            .iter()
            .try_for_each(|(name, value)| write!(f, " {name}={value:?}"))
    }
}

/// The access lines of a log. A last line that is still being written is left for the next look.
pub fn parse(log: &str) -> Vec<AccessLine> {
    let complete = log.rfind('\n').map_or("", |end| &log[..end]);
    complete
        .lines()
        .filter_map(|line| parse_json(line).or_else(|| parse_text(line)))
        .collect()
}

/// `{"timestamp":..,"level":"INFO","target":"access","fields":{"message":"connection complete",..}}`, or the same with
/// the fields beside the level.
fn parse_json(line: &str) -> Option<AccessLine> {
    let line: Value = line.starts_with('{').then(|| serde_json::from_str(line).ok())??;
    let fields = line.get("fields").unwrap_or(&line).as_object()?;
    if line.get("target")? != "access" || fields.get("message")? != MESSAGE {
        return None;
    }
    let of_the_line = |name: &&String| !["level", "target", "timestamp", "message"].contains(&name.as_str());
    let texts = fields
        .iter()
        .filter(|(name, _)| of_the_line(name))
        .map(|(name, value)| (name.clone(), text_of(value)));
    Some(AccessLine {
        level: line.get("level")?.as_str()?.to_owned(),
        fields: texts.collect(),
    })
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `<time>  INFO access: connection complete src.addr=10.0.0.1:4 error="a \"b\""`.
fn parse_text(line: &str) -> Option<AccessLine> {
    let (head, fields) = line.split_once(&format!(" access: {MESSAGE}"))?;
    let level = head.split_whitespace().last()?.to_owned();
    Some(AccessLine {
        level,
        fields: parse_pairs(fields),
    })
}

fn parse_pairs(mut rest: &str) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    while let Some((name, after)) = rest.trim_start().split_once('=') {
        let (value, tail) = parse_value(after);
        pairs.insert(name.to_owned(), value);
        rest = tail;
    }
    pairs
}

/// A quoted value with backslash escapes, or everything up to the next space; and what follows it.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(' ').unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => value.push(char),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let fields = r#"src.addr=10.0.0.1:5 bytes_sent=12 error="no \"way\" out" direction="inbound""#;
        let text = format!(
            "2026-01-01T00:00:00Z  INFO weft: other line\n\
             2026-01-01T00:00:00Z ERROR access: connection complete {fields}\n\
             2026-01-01T00:00:00Z  INFO access: connection complete src.a"
        );
        let fields = json!({
            "message": "connection complete", "src.addr": "10.0.0.1:5", "bytes_sent": 12,
            "error": "no \"way\" out", "direction": "inbound",
        });
        let json = [
            json!({ "level": "INFO", "target": "weft", "fields": { "message": "other" } }),
            json!({ "level": "ERROR", "target": "access", "fields": fields }),
        ];
        let json: String = json.iter().map(|line| format!("{line}\n")).collect();
        let wanted = [
            ("src.addr", "10.0.0.1:5"),
            ("bytes_sent", "12"),
            ("error", "no \"way\" out"),
            ("direction", "inbound"),
        ];
        for log in [text, json] {
            let lines = parse(&log);
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].matches(&wanted), "{}", lines[0]);
            assert!(!lines[0].is_ok() && lines[0].number("bytes_sent") == Some(12));
        }
    }
}
