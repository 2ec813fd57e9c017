//! The answers that the mesh gives itself, and those that say that something went wrong.

use std::net::IpAddr;

use domain::{
    base::{
        MessageBuilder, Name, Serial, StaticCompressor, ToName, Ttl,
        iana::{Class, OptRcode, Rcode},
        message_builder::{AdditionalBuilder, AnswerBuilder, PushError},
        wire::Composer,
    },
    rdata::{A, Aaaa, Cname, Soa},
};

use super::{
    LARGEST_MESSAGE, Protocol,
    message::{Edns, Request, Unanswerable},
};
use crate::mesh::Host;

/// How long an address may be kept: a service's addresses seldom change, a headless service's pods do.
const TTL: Ttl = Ttl::from_secs(30);
/// How long it may be kept that there is none (RFC 2308 5).
const NEGATIVE_TTL: Ttl = Ttl::from_secs(5);
/// The largest datagram that we send and say that we take, in bytes. It never leaves the pod: nothing fragments it.
const LARGEST_DATAGRAM: u16 = 4096;
/// What every client takes (RFC 1035 4.2.1).
const SMALLEST_DATAGRAM: u16 = 512;
/// An OPT record without options, in bytes.
const OPT_SIZE: usize = 11;

type Target = StaticCompressor<Vec<u8>>;
type OwnedName = Name<Vec<u8>>;

/// The answer to a request for a host of the mesh.
pub fn answer(request: &Request<'_>, host: &Host<'_>, cluster_domain: &str, protocol: Protocol) -> Vec<u8> {
    let edns = match request.edns() {
        Ok(edns) => edns,
        Err(Unanswerable::Malformed(reply)) => return reply,
        Err(Unanswerable::Noise) => return Vec::new(),
    };
    if edns.is_some_and(|edns| edns.version > 0) {
        return bad_version(request);
    }
    compose(request, host, cluster_domain, edns, protocol).unwrap_or_else(|_| server_failure(request))
}

/// The answer that the host exists and has nothing of what was asked for.
pub fn no_data(request: &Request<'_>, host: &Host<'_>, cluster_domain: &str, protocol: Protocol) -> Vec<u8> {
    let nothing = Host {
        addresses: Vec::new(),
        ..host.clone()
    };
    answer(request, &nothing, cluster_domain, protocol)
}

/// SERVFAIL: the server that was asked could not be reached, or there are too many queries.
pub fn server_failure(request: &Request<'_>) -> Vec<u8> {
    let mut answer = builder().start_error(request.message, Rcode::SERVFAIL);
    answer.header_mut().set_ra(true);
    finish(answer.additional())
}

/// RFC 6891 6.1.3: a client of a later EDNS is told which we have.
fn bad_version(request: &Request<'_>) -> Vec<u8> {
    let answer = builder().start_error(request.message, Rcode::NOERROR);
    let mut additional = answer.additional();
    let pushed = additional.opt(|opt| {
        opt.set_udp_payload_size(LARGEST_DATAGRAM);
        opt.set_rcode(OptRcode::BADVERS);
        Ok(())
    });
    match pushed {
        Ok(()) => finish(additional),
        Err(_) => server_failure(request),
    }
}

fn compose(
    request: &Request<'_>,
    host: &Host<'_>,
    cluster_domain: &str,
    edns: Option<Edns>,
    protocol: Protocol,
) -> Result<Vec<u8>, PushError> {
    let limit = match protocol {
        Protocol::Tcp => LARGEST_MESSAGE,
        Protocol::Udp => {
            let payload = edns.map_or(SMALLEST_DATAGRAM, |edns| edns.payload);
            payload.clamp(SMALLEST_DATAGRAM, LARGEST_DATAGRAM).into()
        }
    };
    let mut builder = builder();
    // The builder wants to stay below its limit.
    let for_records = limit + 1 - edns.map_or(0, |_| OPT_SIZE);
    builder.set_push_limit(for_records);
    let mut answer = builder.start_answer(request.message, Rcode::NOERROR)?;
    let asked = request.message.sole_question().map_err(|_| PushError::ShortBuf)?;
    let header = answer.header_mut();
    header.set_aa(true);
    header.set_ra(true);
    header.set_cd(request.message.header().cd());
    let plain = name(host.hostname)?;
    let complete = if asked.qname().name_eq(&plain) {
        push_addresses(&mut answer, asked.qname(), host)
    } else {
        answer.push((asked.qname(), Class::IN, TTL, Cname::new(&plain)))?;
        push_addresses(&mut answer, &plain, host)
    };
    if complete.is_err() {
        answer.header_mut().set_tc(true);
    }
    let mut authority = answer.authority();
    if host.addresses.is_empty() {
        authority.push(authority_record(host, cluster_domain)?)?;
    }
    let mut additional = authority.additional();
    additional.set_push_limit(limit + 1);
    if let Some(edns) = edns {
        additional.opt(|opt| {
            opt.set_udp_payload_size(LARGEST_DATAGRAM);
            opt.set_dnssec_ok(edns.dnssec_ok);
            Ok(())
        })?;
    }
    Ok(finish(additional))
}

/// As many as fit; the rest a client gets over TCP.
fn push_addresses(
    answer: &mut AnswerBuilder<Target>,
    owner: &impl ToName,
    host: &Host<'_>,
) -> Result<(), PushError> {
    host.addresses.iter().try_for_each(|address| match address {
        IpAddr::V4(address) => answer.push((owner, Class::IN, TTL, A::new(*address))),
        IpAddr::V6(address) => answer.push((owner, Class::IN, TTL, Aaaa::new(*address))),
    })
}

/// What makes an answer without records one that may be kept (RFC 2308 2.2).
fn authority_record(
    host: &Host<'_>,
    cluster_domain: &str,
) -> Result<(OwnedName, Class, Ttl, Soa<OwnedName>), PushError> {
    let soa = Soa::new(
        name(&format!("ns.dns.{cluster_domain}"))?,
        name(&format!("hostmaster.{cluster_domain}"))?,
        Serial(1),
        Ttl::from_secs(7200),
        Ttl::from_secs(1800),
        Ttl::from_secs(86_400),
        NEGATIVE_TTL,
    );
    Ok((name(host.zone)?, Class::IN, NEGATIVE_TTL, soa))
}

fn name(hostname: &str) -> Result<OwnedName, PushError> {
    // Hostnames of the mesh were checked when they were read; one that is no name after all is a failure of ours.
    Name::vec_from_str(hostname).map_err(|_| PushError::ShortBuf)
}

fn builder() -> MessageBuilder<Target> {
    let target = StaticCompressor::new(Vec::with_capacity(usize::from(SMALLEST_DATAGRAM)));
    match MessageBuilder::from_target(target) {
        Ok(builder) => builder,
        Err(never) => match never {},
    }
}

/// The bytes of a message.
pub(super) fn finish<T: Composer>(message: AdditionalBuilder<T>) -> Vec<u8> {
    message.as_slice().to_vec()
}
