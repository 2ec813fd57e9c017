//! Reading a query: the header, the question, and what the client says of itself (EDNS).

use domain::base::{
    Message, ParsedName,
    iana::{Class, Opcode, Rcode, Rtype},
    message_builder::MessageBuilder,
    opt::Opt,
};

use super::answer::finish;
use crate::mesh::Wanted;

/// The longest hostname, in bytes, without its last dot.
const LONGEST_HOSTNAME: usize = 253;

/// A message that can be answered or passed on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub(super) message: &'a Message<[u8]>,
    pub(super) record_type: Rtype,
    is_lookup: bool,
}

/// What a lookup asks, for `mesh::resolve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// In lower case, without a last dot.
    pub hostname: String,
    /// Which addresses are wanted.
    pub wanted: Wanted,
}

/// A message that is neither.
#[derive(Debug, PartialEq, Eq)]
pub enum Unanswerable {
    /// Not even a header, or a response: to be dropped.
    Noise,
    /// A query that is not well-formed, and what its sender is told.
    Malformed(Vec<u8>),
}

/// Reads a message as far as it must be understood.
///
/// # Errors
/// When it cannot be.
pub fn parse(bytes: &[u8]) -> Result<Request<'_>, Unanswerable> {
    let message = Message::from_slice(bytes).map_err(|_| Unanswerable::Noise)?;
    if message.header().qr() {
        return Err(Unanswerable::Noise);
    }
    let malformed = || Unanswerable::Malformed(malformed(message));
    // RFC 9619: a query has one question.
    let question = message.sole_question().map_err(|_| malformed())?;
    // Nothing stands before the question that it could point to.
    if question.qname().is_compressed() {
        return Err(malformed());
    }
    Ok(Request {
        message,
        record_type: question.qtype(),
        is_lookup: message.header().opcode() == Opcode::QUERY && question.qclass() == Class::IN,
    })
}

/// FORMERR, with the question left out: it may be what is wrong.
fn malformed(message: &Message<[u8]>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    header.set_id(message.header().id());
    header.set_opcode(message.header().opcode());
    header.set_rd(message.header().rd());
    header.set_qr(true);
    header.set_rcode(Rcode::FORMERR);
    finish(builder.additional())
}

impl<'a> Request<'a> {
    /// The message as it came.
    pub fn bytes(&self) -> &'a [u8] {
        self.message.as_slice()
    }

    /// What is asked of the mesh; nothing where the name cannot be a hostname, or something else is asked for.
    pub fn ask(&self) -> Option<Ask> {
        if !self.is_lookup {
            return None;
        }
        let question = self.message.sole_question().ok()?;
        let wanted = match self.record_type {
            Rtype::A => Wanted::V4,
            Rtype::AAAA => Wanted::V6,
            Rtype::ANY => Wanted::Both,
            _ => Wanted::Nothing,
        };
        let hostname = hostname(question.qname())?;
        Some(Ask { hostname, wanted })
    }

    /// Whether records that carry addresses are asked for (SVCB and HTTPS give them as hints): of a name of the mesh only
    /// the mesh may say those. What else there may be, such as SRV or MX, its server knows.
    pub fn asks_for_addresses(&self) -> bool {
        matches!(
            self.record_type,
            Rtype::A | Rtype::AAAA | Rtype::ANY | Rtype::SVCB | Rtype::HTTPS
        )
    }

    /// Whether a whole zone is asked for: the response is several messages.
    pub fn is_transfer(&self) -> bool {
        self.message.header().opcode() == Opcode::QUERY
            && matches!(self.record_type, Rtype::AXFR | Rtype::IXFR)
    }

    /// The type of the records that are asked for, for metrics; `other` for those that are rare.
    pub fn type_label(&self) -> &'static str {
        if !self.is_lookup {
            return "other";
        }
        match self.record_type {
            Rtype::A => "a",
            Rtype::AAAA => "aaaa",
            Rtype::ANY => "any",
            Rtype::CNAME => "cname",
            Rtype::HTTPS => "https",
            Rtype::MX => "mx",
            Rtype::NS => "ns",
            Rtype::PTR => "ptr",
            Rtype::SOA => "soa",
            Rtype::SRV => "srv",
            Rtype::SVCB => "svcb",
            Rtype::TXT => "txt",
            _ => "other",
        }
    }

    /// What the client says of itself.
    ///
    /// # Errors
    /// When its additional records cannot be read, or it says it twice (RFC 6891 6.1.1).
    pub(super) fn edns(&self) -> Result<Option<Edns>, Unanswerable> {
        let malformed = || Unanswerable::Malformed(malformed(self.message));
        let additional = self.message.additional().map_err(|_| malformed())?;
        let mut edns = None;
        for record in additional {
            let record = record.map_err(|_| malformed())?;
            if record.rtype() != Rtype::OPT {
                continue;
            }
            let record = record.to_record::<Opt<_>>().map_err(|_| malformed())?;
            let Some(record) = record.filter(|_| edns.is_none()) else {
                return Err(malformed());
            };
            let opt = domain::base::opt::OptRecord::from(record);
            edns = Some(Edns {
                payload: opt.udp_payload_size(),
                version: opt.version(),
                dnssec_ok: opt.dnssec_ok(),
            });
        }
        Ok(edns)
    }
}

/// A client's EDNS (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edns {
    /// The largest datagram that it takes, in bytes.
    pub(super) payload: u16,
    pub(super) version: u8,
    pub(super) dnssec_ok: bool,
}

/// A name as hostnames are written; `None` for one that has other characters, which no service has.
fn hostname(name: &ParsedName<&[u8]>) -> Option<String> {
    let mut hostname = String::with_capacity(64);
    for label in name.iter().filter(|label| !label.is_root()) {
        if !hostname.is_empty() {
            hostname.push('.');
        }
        for byte in label.as_slice() {
            match byte {
                b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => hostname.push(char::from(*byte)),
                b'A'..=b'Z' => hostname.push(char::from(byte.to_ascii_lowercase())),
                _ => return None,
            }
        }
    }
    (hostname.len() <= LONGEST_HOSTNAME).then_some(hostname)
}
