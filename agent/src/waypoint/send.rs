//! Sending a request: pick an endpoint, authorize what depends on it, send, and try again where that may help.
//!
//! A request is sent again only before a byte of its response was passed on, and only while all of its body is still there.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Response, StatusCode, header};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::{
    balance::{Cluster, Member, Place, To},
    body::{Body, From, Sent},
    client::{Client, Here},
    downstream::Busy,
    draw,
    grpc::grpc_status,
    headers, mirror,
    outgoing::{Head, speaks_http2},
    outliers,
    record::Exchange,
    reply::Reply,
    request::{Asked, ResponseHeaders},
    upgrade,
    upstream::{Lease, SendError},
};
use crate::mesh::{
    Inbound, NextHop, Verdict, authorize_request,
    http::{Attempt, Backend, Matched, RequestFacts, ResponseFlag, Retry},
    recorded_matches,
};

/// Endpoints that one request may be sent to, whatever a rule says.
const MOST_RETRIES: u32 = 25;

/// A request that is about to be sent.
pub(super) struct Sending<'a> {
    pub(super) client: &'a Arc<Client>,
    pub(super) here: &'a Here,
    pub(super) matched: Option<&'a Matched<'a>>,
    pub(super) backend: Option<&'a Backend>,
    pub(super) asked: &'a mut Asked,
    pub(super) body: Sent,
    /// When its response must have ended.
    pub(super) deadline: Option<Instant>,
    pub(super) response_headers: ResponseHeaders,
}

/// An endpoint's response, and what it holds.
pub(super) struct Answer {
    client: Arc<Client>,
    response: Response<Incoming>,
    lease: Lease,
    places: Vec<Place>,
    deadline: Option<Instant>,
    upgrade: Option<(HeaderValue, OnUpgrade)>,
}

/// How an attempt failed.
struct Failed {
    attempt: Attempt,
    reply: Box<Reply>,
    may_retry: bool,
    /// The connection had been used before, and may have been closed before the request came.
    is_stale: bool,
}

type Outcome = Result<(Response<Incoming>, Lease), Failed>;

impl Sending<'_> {
    /// The response's head.
    ///
    /// # Errors
    /// With a reply of the waypoint's own, where there is none.
    pub(super) async fn send(self, to: To<'_>, exchange: &mut Exchange) -> Result<Answer, Box<Reply>> {
        let upstreams = &self.client.worker().upstreams;
        let cluster = upstreams.cluster(&self.here.seen, to);
        let cluster = cluster.map_err(|refusal| Reply::refused(&refusal))?;
        let place = cluster.begin().ok_or_else(overflow)?;
        let http2 = speaks_http2(cluster.protocol, self.asked, exchange.is_grpc());
        let head = Head::of(&self, http2, exchange)?;
        let mirrors = mirror::begin(&self, &head);
        let sent = self.attempts(&cluster, &head, exchange);
        let sent = match self.deadline {
            Some(deadline) => timeout_at(deadline, sent).await,
            None => Ok(sent.await),
        };
        let (response, lease, budget) = sent.map_err(|_| Reply::timed_out())??;
        mirror::end(mirrors, &self.body);
        let mut answer = Answer {
            client: Arc::clone(self.client),
            response,
            lease,
            places: [place].into_iter().chain(budget).collect(),
            deadline: self.deadline,
            upgrade: self.asked.upgrade.take(),
        };
        answer.change_headers(&self.response_headers);
        Ok(answer)
    }

    /// Attempts, until one ends well enough or no more may be made.
    async fn attempts(
        &self,
        cluster: &Cluster,
        head: &Head,
        exchange: &mut Exchange,
    ) -> Result<(Response<Incoming>, Lease, Option<Place>), Box<Reply>> {
        let standard = Retry::standard();
        let mut tries = Tries::new(self.matched.map_or(&standard, Matched::retry));
        loop {
            let member = cluster.pick(draw(), tries.avoided(), true).ok_or_else(|| {
                Reply::unavailable(ResponseFlag::NoHealthyUpstream, "no endpoint takes anything")
            })?;
            self.authorize(member, exchange)?;
            exchange.attempt(&member.endpoint);
            let outcome = self.attempt(cluster, member, head).await;
            cluster.judge(member, self.result(&outcome));
            let pause = tries.again(&outcome, self, cluster, member.endpoint.addr);
            match (pause, outcome) {
                (Some(pause), _) => sleep(pause).await,
                (None, Ok((response, lease))) => {
                    if matches!(&member.endpoint.next, NextHop::Tunnel(tunnel) if !tunnel.via_waypoint) {
                        exchange.proven();
                    }
                    if tries.is_exhausted(attempt_of(&response)) {
                        exchange.flag(ResponseFlag::RetriesExhausted);
                    }
                    return Ok((response, lease, tries.budget));
                }
                (None, Err(failed)) => return Err(tries.gave_up(failed)),
            }
        }
    }

    /// What the policies say that cover the workload that was chosen, with the client's identity.
    fn authorize(&self, member: &Member, exchange: &mut Exchange) -> Result<(), Box<Reply>> {
        let mesh = &self.here.seen.mesh;
        let workload = &member.endpoint.workload;
        let conn = Inbound {
            peer: Some(self.client.identity().clone()),
            source_ip: self.client.addr.ip(),
            destination: member.endpoint.addr,
        };
        let head = self.asked.head();
        let facts = RequestFacts {
            head: &head,
            token: self.asked.token.as_ref(),
            sni: None,
        };
        for policy in recorded_matches(mesh, &self.here.policies, Some(workload), &conn, &facts) {
            self.client.worker().shared.metrics.dry_run_matched(policy);
            let (policy, action, client) = (&policy.key, policy.action, self.client.addr);
            tracing::info!(%policy, %action, src = %client, dst = %conn.destination, "a policy that is only recorded matched");
        }
        match authorize_request(mesh, workload, &conn, &facts) {
            Verdict::Allow { policy } => {
                exchange.flow.policy = policy.or(exchange.flow.policy.take());
                Ok(())
            }
            Verdict::Deny(refusal) => Err(Reply::denied(&refusal).into()),
        }
    }

    /// One attempt, to the response's head.
    async fn attempt(&self, cluster: &Cluster, member: &Member, head: &Head) -> Outcome {
        let request = head.request(self.body.attempt());
        let worker = self.client.worker();
        let sending = member.upstream.send(worker, head.http2, &cluster.policy, request);
        let allowed = self
            .matched
            .and_then(|matched| matched.rule().timeouts.backend_ms);
        let sent = match allowed {
            Some(allowed) => timeout(Duration::from_millis(allowed), sending).await,
            None => Ok(sending.await),
        };
        match sent {
            Ok(Ok(sent)) => Ok(sent),
            Ok(Err(error)) => Err(Failed::by(&error, &self.body)),
            Err(_) => Err(Failed {
                attempt: Attempt::TimedOut,
                reply: Box::new(Reply::timed_out()),
                may_retry: true,
                is_stale: false,
            }),
        }
    }

    /// What an attempt says of its endpoint. One that broke with its client says nothing against it.
    fn result(&self, outcome: &Outcome) -> outliers::Result {
        match outcome {
            Ok((response, _)) => outliers::Result::Status(response.status().as_u16()),
            Err(_) if self.body.is_broken() => outliers::Result::Status(200),
            Err(_) => outliers::Result::Failed,
        }
    }

    /// Whether a server may be asked twice although it may have seen the first (RFC 9110 9.2.2).
    fn is_repeatable(&self) -> bool {
        let method = &self.asked.parts.method;
        self.body.is_nothing() && (method.is_safe() || [Method::PUT, Method::DELETE].contains(method))
    }
}

fn overflow() -> Box<Reply> {
    let reply = Reply::unavailable(ResponseFlag::RateLimited, "too many requests are under way");
    Box::new(reply)
}

impl Failed {
    fn by(error: &SendError, body: &Sent) -> Self {
        let attempt = error.attempt();
        let flag = match (attempt, error) {
            (_, SendError::Overflow) => ResponseFlag::RateLimited,
            _ if body.is_broken() => ResponseFlag::DownstreamConnectionTermination,
            (Attempt::ConnectFailed, _) => ResponseFlag::UpstreamFailure,
            _ => ResponseFlag::UpstreamConnectionTermination,
        };
        Self {
            attempt,
            reply: Box::new(Reply::unavailable(flag, error.text())),
            may_retry: error.may_retry() && !body.is_broken(),
            is_stale: error.is_stale(),
        }
    }
}

/// The attempts of one request.
struct Tries<'a> {
    retry: &'a Retry,
    retries: u32,
    tried: Vec<SocketAddr>,
    /// Whether it was sent once more because a connection had been closed.
    refreshed: bool,
    /// The place that a retry has in the service's budget.
    budget: Option<Place>,
}

impl<'a> Tries<'a> {
    fn new(retry: &'a Retry) -> Self {
        Self {
            retry,
            retries: 0,
            tried: Vec::new(),
            refreshed: false,
            budget: None,
        }
    }

    fn avoided(&self) -> &[SocketAddr] {
        match self.retry.avoid_tried {
            true => &self.tried,
            false => &[],
        }
    }

    /// Whether another attempt is made after this one, and after how long.
    fn again(
        &mut self,
        outcome: &Outcome,
        sending: &Sending<'_>,
        cluster: &Cluster,
        addr: SocketAddr,
    ) -> Option<Duration> {
        let attempt = match outcome {
            Ok((response, _)) => attempt_of(response),
            Err(failed) if failed.is_stale && !self.refreshed && sending.is_repeatable() => {
                self.refreshed = true;
                return Some(Duration::ZERO);
            }
            Err(failed) if !failed.may_retry => return None,
            Err(failed) => failed.attempt,
        };
        let most = self.retry.attempts.min(MOST_RETRIES);
        if self.retries >= most || !self.retry.again_after(&attempt) || !sending.body.may_repeat() {
            return None;
        }
        // The budget is for what apps have to do twice: not for what none of them has seen.
        if self.budget.is_none() && !attempt.was_not_seen() {
            self.budget = Some(cluster.retry()?);
        }
        self.retries += 1;
        self.tried.push(addr);
        Some(self.retry.pause(self.retries, draw()))
    }

    /// Whether there would be another attempt, if more were allowed.
    fn is_exhausted(&self, attempt: Attempt) -> bool {
        let most = self.retry.attempts.min(MOST_RETRIES);
        most > 0 && self.retries >= most && self.retry.again_after(&attempt)
    }

    /// The answer after the last attempt.
    fn gave_up(&self, mut failed: Failed) -> Box<Reply> {
        if failed.may_retry && self.is_exhausted(failed.attempt) && self.tells_of_retries() {
            failed.reply.flag = ResponseFlag::RetriesExhausted;
        }
        failed.reply
    }

    /// Whether a rule asks for them: the standard ones are nobody's wish, and what failed says more.
    fn tells_of_retries(&self) -> bool {
        *self.retry != Retry::standard()
    }
}

/// What a response means to whoever may try again. gRPC says its status among the headers where there is no body.
fn attempt_of(response: &Response<Incoming>) -> Attempt {
    let grpc = grpc_status(response.headers()).and_then(|status| u16::try_from(status).ok());
    Attempt::Status(response.status().as_u16(), grpc)
}

impl Answer {
    fn change_headers(&mut self, changes: &ResponseHeaders) {
        let headers = self.response.headers_mut();
        let upgrade = headers::strip_hop_by_hop(headers);
        changes.apply(headers);
        if self.response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(protocol) = upgrade
        {
            let headers = self.response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, protocol);
        }
    }

    /// The response to the client. With its end the request is recorded.
    pub(super) fn respond(mut self, mut exchange: Exchange, busy: Busy) -> Response<Body> {
        let status = self.response.status();
        exchange.head(status.as_u16(), self.response.headers());
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(exchange, busy);
        }
        *self.response.version_mut() = http::Version::default();
        let deadline = self.deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        let (lease, places) = (self.lease, self.places);
        self.response.map(|incoming| {
            let body = Body::new(From::Endpoint(incoming), exchange, Some(busy));
            body.held(lease, places, deadline)
        })
    }

    /// The client and the endpoint go on with another protocol; bytes are copied from here on.
    fn switch(mut self, mut exchange: Exchange, busy: Busy) -> Response<Body> {
        let Some((_, client)) = self.upgrade.take() else {
            let reply = Reply::unavailable(
                ResponseFlag::UpstreamConnectionTermination,
                "the endpoint changed to a protocol that nobody asked for",
            );
            exchange.flag(reply.flag);
            exchange.flow.error = reply.why.clone();
            let response = reply.into_response(false);
            exchange.head(response.status().as_u16(), response.headers());
            return response.map(|body| Body::new(From::Own(body), exchange, Some(busy)));
        };
        let endpoint = hyper::upgrade::on(&mut self.response);
        let worker = Arc::clone(self.client.worker());
        let held = (self.lease, self.places, busy);
        worker
            .tasks
            .spawn(upgrade::carry(client, endpoint, exchange, held));
        self.response.map(|_| Body::nothing())
    }
}
