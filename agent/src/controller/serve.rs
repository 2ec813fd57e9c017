//! The controller's two services on one port: the feed and the CA. Each call is signed with a token; to hear the mesh, a certificate of
//! the mesh is enough.
//!
//! For a certificate alone none is signed. Who holds a token has just been asked of Kubernetes, which knows the pod and the node
//! that it is bound to; a certificate says neither, and a key that was stolen once could be renewed with it for ever.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    server::{Grpc, UnaryService},
};
use tonic_prost::ProstCodec;

use super::{
    ca::Authority,
    counts::Counts,
    tokens::{self, Caller, Reviewer},
    waypoint_accounts::{Standing, WaypointAccounts},
};
use crate::{
    feed::server::Server,
    net::chain,
    rpc::{
        Answer, Certified, Handler, Peer,
        ca::{CREATE_PATH, CertificateRequest, CertificateResponse},
        discovery::DELTA_PATH,
    },
};

/// Answers calls.
pub(super) struct Services {
    /// Who calls.
    pub(super) reviewer: Arc<dyn Reviewer>,
    /// The CA.
    pub(super) authority: Arc<Authority>,
    /// Who besides agents may see the mesh.
    pub(super) waypoints: WaypointAccounts,
    /// The feed.
    pub(super) feed: Server,
    /// What was done.
    pub(super) counts: Arc<Counts>,
}

impl Handler for Services {
    fn call(self: Arc<Self>, call: http::Request<Incoming>) -> Answer {
        Box::pin(async move { self.answer(call).await.unwrap_or_else(Status::into_http) })
    }
}

type Answered = Result<http::Response<tonic::body::Body>, Status>;

impl Services {
    async fn answer(self: Arc<Self>, call: http::Request<Incoming>) -> Answered {
        let path = call.uri().path();
        if path != DELTA_PATH && path != CREATE_PATH {
            return Err(Status::unimplemented(format!("there is no {path}")));
        }
        let certified = call.extensions().get().filter(|_| path == DELTA_PATH);
        let from = call
            .extensions()
            .get()
            .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |Peer(from)| *from);
        let caller = self.caller(call.headers(), certified, from).await?;
        if call.uri().path() == DELTA_PATH {
            let until = self.may_see_the_mesh(&caller)?;
            return Ok(self.feed.answer(caller.to_string(), until, call));
        }
        let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
        let create = Create {
            services: self,
            caller,
        };
        Ok(Grpc::new(codec).unary(create, call).await)
    }

    /// Who runs where, and which policies there are, is for agents and waypoints: any pod can have a token for our audience. The
    /// answer says until when.
    fn may_see_the_mesh(&self, caller: &Caller) -> Result<CancellationToken, Status> {
        if self.authority.is_agent(caller) {
            return Ok(CancellationToken::new());
        }
        match self.waypoints.standing(caller) {
            Standing::Waypoint(until) => return Ok(until),
            Standing::Unknown => {
                let why =
                    "not every kind of object has been listed yet, so that nobody knows who is a waypoint";
                return Err(Status::unavailable(why));
            }
            Standing::Other => {}
        }
        self.counts.denied("not_an_agent");
        let error = format!(
            "{caller} asks for the mesh: only agents may (see --trusted-agents), and waypoints, as the service account \
             that has their Gateway's name"
        );
        tracing::warn!(error, "a call was refused");
        Err(Status::permission_denied(error))
    }

    /// Whose the token is. Where there is none at all, whose the certificate is.
    async fn caller(
        &self,
        headers: &http::HeaderMap,
        certified: Option<&Certified>,
        from: IpAddr,
    ) -> Result<Caller, Status> {
        let signed = headers.contains_key(http::header::AUTHORIZATION);
        let reviewed = match (tokens::bearer(headers), certified) {
            (Err(_), Some(Certified(id))) if !signed => Ok(Caller::certified(id)),
            (Ok(token), _) => self.reviewer.review(token, from).await,
            (Err(error), _) => Err(error),
        };
        reviewed.map_err(|error| {
            self.counts.denied("token");
            tracing::warn!(error = chain(&error), "a call was refused");
            tokens::status(&error)
        })
    }
}

/// One call of the CA.
struct Create {
    services: Arc<Services>,
    caller: Caller,
}

impl UnaryService<CertificateRequest> for Create {
    type Response = CertificateResponse;
    type Future = std::future::Ready<Result<tonic::Response<CertificateResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let Services {
            authority, counts, ..
        } = &*self.services;
        let answer = match authority.create(&self.caller, request.get_ref()) {
            Ok(answer) => {
                counts.signed();
                Ok(tonic::Response::new(answer))
            }
            Err(denied) => {
                counts.denied(denied.reason());
                tracing::warn!(caller = %self.caller, error = chain(&denied), "a certificate was refused");
                Err(denied.status())
            }
        };
        std::future::ready(answer)
    }
}

#[cfg(test)]
mod tests;
