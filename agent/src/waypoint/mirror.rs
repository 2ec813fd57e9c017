//! Copies of requests for somebody who is to see them and whose answers nobody waits for.
//!
//! A copy is sent when the response to the request itself has begun, so that its body, as far as it is kept, is there. One whose body
//! is larger than what is kept is not copied.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, header};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::{
    balance::To,
    body::{Outgoing, Sent},
    client::Client,
    draw,
    outgoing::{Head, uri},
    send::Sending,
};
use crate::mesh::{
    Inbound, Verdict, authorize_request,
    http::{Destination, RequestFacts},
};

/// How long a copy may take.
const LONGEST: Duration = Duration::from_secs(15);

/// A copy that is to be sent.
pub(super) struct Copy {
    client: Arc<Client>,
    member: (Arc<super::balance::Cluster>, Arc<super::upstream::Upstream>),
    head: Head,
}

/// The copies of a request, with the endpoints that get them: those that its policies let it reach.
pub(super) fn begin(sending: &Sending<'_>, head: &Head) -> Vec<Copy> {
    let mirrors = sending.matched.iter().flat_map(|matched| &matched.rule().mirrors);
    let drawn = mirrors.filter(|mirror| mirror.is_met(draw()));
    drawn
        .filter_map(|mirror| copy(sending, head, &mirror.to))
        .collect()
}

fn copy(sending: &Sending<'_>, head: &Head, to: &Destination) -> Option<Copy> {
    let Destination::Service {
        service,
        port,
        subset,
    } = to
    else {
        return None;
    };
    let (here, worker) = (sending.here, sending.client.worker());
    let to = To::Service(service, *port, subset.as_ref());
    let cluster = worker.upstreams.cluster(&here.seen, to).ok()?;
    let member = cluster.pick(draw(), &[], true)?;
    let conn = Inbound {
        peer: Some(sending.client.identity().clone()),
        source_ip: sending.client.addr.ip(),
        destination: member.endpoint.addr,
    };
    let asked = sending.asked.head();
    let facts = RequestFacts {
        head: &asked,
        token: sending.asked.token.as_ref(),
        sni: None,
    };
    let verdict = authorize_request(&here.seen.mesh, &member.endpoint.workload, &conn, &facts);
    if matches!(verdict, Verdict::Deny(_)) {
        return None;
    }
    let upstream = Arc::clone(&member.upstream);
    Some(Copy {
        client: Arc::clone(sending.client),
        head: shadow(head)?,
        member: (cluster, upstream),
    })
}

/// The head of a copy: its host says that it is one, as Envoy's does.
fn shadow(head: &Head) -> Option<Head> {
    let authority: Arc<str> = match head.authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{host}-shadow:{port}")
        }
        _ => format!("{}-shadow", head.authority),
    }
    .into();
    let mut headers = head.headers.clone();
    // How long it is, its own body says.
    headers.remove(header::CONTENT_LENGTH);
    if !head.http2 {
        headers.insert(header::HOST, HeaderValue::from_str(&authority).ok()?);
    }
    Some(Head {
        http2: head.http2,
        method: head.method.clone(),
        uri: uri(head.http2, &authority, &head.path)?,
        headers,
        authority,
        path: head.path.clone(),
    })
}

/// Sends the copies, where all of the body is there.
pub(super) fn end(copies: Vec<Copy>, body: &Sent) {
    if copies.is_empty() {
        return;
    }
    let Some(body) = body.whole() else { return };
    for copy in copies {
        let worker = Arc::clone(copy.client.worker());
        let Some(place) = copy.member.0.copy() else {
            return;
        };
        let request = copy
            .head
            .request(Outgoing::Copy(Some(body.clone()).filter(|it| !it.is_empty())));
        worker.clone().tasks.spawn(async move {
            let (cluster, upstream) = copy.member;
            let _place = place;
            let sent = async {
                let sent = upstream
                    .send(&worker, copy.head.http2, &cluster.policy, request)
                    .await;
                let Ok((response, lease)) = sent else { return };
                let mut body = response.into_body();
                while let Some(Ok(_)) = body.frame().await {}
                lease.give_back();
            };
            let _ = timeout(LONGEST, sent).await;
        });
    }
}
