//! The texts that travel with a CONNECT: `:authority`, `baggage`, `forwarded`, `traceparent`; as in
//! Istio's ambient mode.
//!
//! Pure parsing and printing. What a peer writes here is a claim: telemetry may show it, no verdict may rest on it
//! unless the peer's identity allows it to be believed. Used by `pool`, `server` and the roles.

use std::{
    fmt::{self, Write as _},
    net::SocketAddr,
    str::FromStr,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;

use crate::mesh::{Workload, WorkloadType};

#[cfg(test)]
mod tests;

/// W3C Baggage.
pub const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// RFC 7239.
pub const FORWARDED: HeaderName = http::header::FORWARDED;
/// On the answer to a CONNECT: the next one on the same tunnel may have the app's first bytes right behind it. weft's own. An
/// agent of another kind is not asked to take bytes that it has not agreed to (RFC 9110 9.3.6).
pub const EARLY_DATA: HeaderName = HeaderName::from_static("weft-early-data");
/// W3C Trace Context.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest header that is read (W3C Baggage 3.3.2 asks for 8192 bytes).
const LONGEST: usize = 8192;
/// RFC 1035: the longest host name.
const LONGEST_HOST: usize = 253;

/// Why a header was not understood. The connection goes on without it, except for an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// Not an address and port, nor a name and port.
    #[error("not of the form address:port or host:port")]
    Authority,
    /// Longer than is read.
    #[error("longer than {LONGEST} bytes")]
    TooLong,
    /// No `for` with an address and a port.
    #[error("no `for` with an address and a port")]
    Forwarded,
    /// Not `version-trace-parent-flags` in lower-case hexadecimal.
    #[error("not a W3C traceparent")]
    TraceParent,
    /// Not text, or broken percent-encoding.
    #[error("not UTF-8")]
    NotText,
}

/// Where a CONNECT leads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// A pod's or a service's address.
    Addr(SocketAddr),
    /// A service's name.
    Host(String, u16),
}

impl FromStr for Authority {
    type Err = HeaderError;

    fn from_str(text: &str) -> Result<Self, HeaderError> {
        if let Ok(addr) = text.parse() {
            return Ok(Self::Addr(addr));
        }
        let (host, port) = text.rsplit_once(':').ok_or(HeaderError::Authority)?;
        if !is_host(host) || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(HeaderError::Authority);
        }
        let port = port.parse().map_err(|_| HeaderError::Authority)?;
        Ok(Self::Host(host.to_ascii_lowercase(), port))
    }
}

/// A DNS name of labels; one whose last label is a number is an address that somebody wrote badly.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    host.len() <= LONGEST_HOST && host.split('.').all(label) && !last.bytes().all(|b| b.is_ascii_digit())
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(addr: SocketAddr) -> Self {
        Self::Addr(addr)
    }
}

/// What one agent tells the other about its workload, for telemetry. Empty where it was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Baggage {
    /// `k8s.cluster.name`.
    pub cluster: String,
    /// `k8s.namespace.name`.
    pub namespace: String,
    /// Which of `k8s.deployment.name`, `k8s.pod.name`... was there.
    pub workload_type: WorkloadType,
    /// Its value.
    pub workload_name: String,
    /// `service.name`: the canonical name.
    pub service_name: String,
    /// `service.version`: the canonical revision.
    pub service_version: String,
    /// `cloud.region`.
    pub region: String,
    /// `cloud.availability_zone`.
    pub zone: String,
}

impl Baggage {
    /// What is said about `workload`.
    pub fn of(workload: &Workload) -> Self {
        Self {
            cluster: workload.cluster.to_string(),
            namespace: workload.namespace.to_string(),
            workload_type: workload.workload_type,
            workload_name: workload.workload_name.to_string(),
            service_name: workload.canonical_name.to_string(),
            service_version: workload.canonical_revision.to_string(),
            region: workload.locality.region.to_string(),
            zone: workload.locality.zone.to_string(),
        }
    }

    /// As a header. Names that are too long to be Kubernetes' give an empty one.
    pub fn header(&self) -> HeaderValue {
        let text = self.to_string();
        let header = if text.len() > LONGEST {
            None
        } else {
            HeaderValue::try_from(text).ok()
        };
        header.unwrap_or(HeaderValue::from_static(""))
    }

    /// Members and properties that are not ours are passed over.
    fn member(&mut self, member: &str) -> Result<(), HeaderError> {
        let member = member.split(';').next().unwrap_or_default();
        let Some((key, value)) = member.split_once('=') else {
            return Ok(());
        };
        let workload_type = match key.trim() {
            "k8s.cluster.name" => return decode_into(&mut self.cluster, value),
            "k8s.namespace.name" => return decode_into(&mut self.namespace, value),
            "service.name" => return decode_into(&mut self.service_name, value),
            "service.version" => return decode_into(&mut self.service_version, value),
            "cloud.region" => return decode_into(&mut self.region, value),
            "cloud.availability_zone" => return decode_into(&mut self.zone, value),
            "k8s.deployment.name" => WorkloadType::Deployment,
            "k8s.pod.name" => WorkloadType::Pod,
            "k8s.job.name" => WorkloadType::Job,
            "k8s.cronjob.name" => WorkloadType::CronJob,
            _ => return Ok(()),
        };
        self.workload_type = workload_type;
        decode_into(&mut self.workload_name, value)
    }
}

impl FromStr for Baggage {
    type Err = HeaderError;

    fn from_str(text: &str) -> Result<Self, HeaderError> {
        if text.len() > LONGEST {
            return Err(HeaderError::TooLong);
        }
        let mut baggage = Self::default();
        text.split(',').try_for_each(|member| baggage.member(member))?;
        Ok(baggage)
    }
}

impl fmt::Display for Baggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.workload_type {
            WorkloadType::Deployment => "deployment",
            WorkloadType::Pod => "pod",
            WorkloadType::Job => "job",
            WorkloadType::CronJob => "cronjob",
        };
        write!(f, "k8s.cluster.name={}", Encoded(&self.cluster))?;
        write!(f, ",k8s.namespace.name={}", Encoded(&self.namespace))?;
        write!(f, ",k8s.{kind}.name={}", Encoded(&self.workload_name))?;
        write!(f, ",service.name={}", Encoded(&self.service_name))?;
        write!(f, ",service.version={}", Encoded(&self.service_version))?;
        write!(f, ",cloud.region={}", Encoded(&self.region))?;
        write!(f, ",cloud.availability_zone={}", Encoded(&self.zone))
    }
}

/// Percent-encodes what is not a `baggage-octet` (W3C Baggage 3.3.1.3), and `%` itself.
struct Encoded<'a>(&'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            match byte {
                b'"' | b',' | b';' | b'\\' | b'%' => write!(f, "%{byte:02X}")?,
                b'!'..=b'~' => f.write_char(char::from(byte))?,
                _ => write!(f, "%{byte:02X}")?,
            }
        }
        Ok(())
    }
}

/// A `%` without two digits stands for itself, as browsers have it.
fn decode_into(field: &mut String, value: &str) -> Result<(), HeaderError> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.trim().as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        bytes.push(escape.map_or(*first, |(high, low)| high << 4 | low));
        rest = tail
            .get(if escape.is_some() { 2 } else { 0 }..)
            .unwrap_or_default();
    }
    *field = String::from_utf8(bytes).map_err(|_| HeaderError::NotText)?;
    Ok(())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// Who the connection is forwarded for, and the service that was dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The client's address.
    pub client: SocketAddr,
    /// The service's hostname, for a connection to a service.
    pub host: Option<String>,
}

impl Forwarded {
    /// As a header; `None` for a host that no header can hold.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.to_string()).ok()
    }

    fn parameter(name: &str, value: &str, client: &mut Option<SocketAddr>, host: &mut Option<String>) {
        let value = value.trim();
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value);
        if name.trim().eq_ignore_ascii_case("for") {
            *client = value.parse().ok();
        } else if name.trim().eq_ignore_ascii_case("host") && is_host(value) {
            *host = Some(value.to_ascii_lowercase());
        }
    }
}

impl FromStr for Forwarded {
    type Err = HeaderError;

    /// Reads the first element; there is one hop.
    fn from_str(text: &str) -> Result<Self, HeaderError> {
        if text.len() > LONGEST {
            return Err(HeaderError::TooLong);
        }
        let (mut client, mut host) = (None, None);
        for pair in text.split(',').next().unwrap_or_default().split(';') {
            if let Some((name, value)) = pair.split_once('=') {
                Self::parameter(name, value, &mut client, &mut host);
            }
        }
        Ok(Self {
            client: client.ok_or(HeaderError::Forwarded)?,
            host,
        })
    }
}

impl fmt::Display for Forwarded {
    /// A [`SocketAddr`] prints IPv6 in brackets, as RFC 7239 6 wants it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.client)?;
        match &self.host {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

/// The trace that a connection is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The whole trace; never zero.
    pub trace_id: [u8; 16],
    /// The span that made this connection; never zero.
    pub parent_id: [u8; 8],
    /// Bit 0: sampled.
    pub flags: u8,
}

impl TraceParent {
    /// A new trace from a random draw.
    pub fn new(random: [u8; 24], sampled: bool) -> Self {
        let (mut trace_id, mut parent_id) = ([0; 16], [0; 8]);
        let (trace, parent) = random.split_at(16);
        trace_id.copy_from_slice(trace);
        parent_id.copy_from_slice(parent);
        // Zero is reserved, and a draw of it is one in 2^64.
        trace_id[15] |= u8::from(trace_id == [0; 16]);
        parent_id[7] |= u8::from(parent_id == [0; 8]);
        Self {
            trace_id,
            parent_id,
            flags: sampled.into(),
        }
    }

    /// As a header; `None` never happens, the text is hexadecimal.
    pub fn header(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(self.to_string()).ok()
    }
}

impl FromStr for TraceParent {
    type Err = HeaderError;

    /// Trace Context 3.2.4: a later version may have more fields after those of version 00.
    fn from_str(text: &str) -> Result<Self, HeaderError> {
        let mut fields = text.split('-');
        let mut field = || fields.next().ok_or(HeaderError::TraceParent);
        let [version] = hex_bytes(field()?)?;
        let trace_id = hex_bytes(field()?)?;
        let parent_id = hex_bytes(field()?)?;
        let [flags] = hex_bytes(field()?)?;
        let later = fields.next().is_some();
        if version == 0xff || (version == 0 && later) || trace_id == [0; 16] || parent_id == [0; 8] {
            return Err(HeaderError::TraceParent);
        }
        Ok(Self {
            trace_id,
            parent_id,
            flags,
        })
    }
}

fn hex_bytes<const N: usize>(text: &str) -> Result<[u8; N], HeaderError> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() || text.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(HeaderError::TraceParent);
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = hex(*high).zip(hex(*low)).ok_or(HeaderError::TraceParent)?;
        *byte = high << 4 | low;
    }
    Ok(bytes)
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace_id = u128::from_be_bytes(self.trace_id);
        let parent_id = u64::from_be_bytes(self.parent_id);
        write!(f, "00-{trace_id:032x}-{parent_id:016x}-{:02x}", self.flags)
    }
}

/// A header that was sent and understood. One that was not is as good as absent: it only informs.
pub(super) fn read<T: FromStr>(headers: &HeaderMap, name: &HeaderName) -> Option<T> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}
