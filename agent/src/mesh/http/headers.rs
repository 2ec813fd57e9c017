//! Changes of headers.

use http::{
    HeaderMap, HeaderValue,
    header::{self, HeaderName},
};

use super::HeaderChanges;

impl HeaderChanges {
    /// Makes them: sets, then adds, then removes.
    ///
    /// What frames a message or belongs to one connection (RFC 9110 7.6.1) is not changed, nor is `host`, which is
    /// changed by [`super::Rewrite::authority`]; pseudo headers are none of these. A name or a value that cannot be one is
    /// left out, and so is what does not fit into the map any more.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            if let Some((name, value)) = entry(name, value) {
                let _full = headers.try_insert(name, value);
            }
        }
        for (name, value) in &self.add {
            if let Some((name, value)) = entry(name, value) {
                let _full = headers.try_append(name, value);
            }
        }
        for name in self.remove.iter().filter_map(|name| changeable(name)) {
            headers.remove(name);
        }
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

fn entry(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((changeable(name)?, HeaderValue::from_str(value).ok()?))
}

fn changeable(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    is_changeable(&name).then_some(name)
}

/// Whether routes may set, add or remove a header.
pub fn is_changeable(name: &HeaderName) -> bool {
    let fixed = [
        header::HOST,
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    !fixed.contains(name) && !matches!(name.as_str(), "keep-alive" | "proxy-connection")
}

#[cfg(test)]
mod tests;
