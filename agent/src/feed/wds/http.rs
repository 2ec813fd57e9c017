//! What only waypoints are told (`weft.mesh.Http`): routes of services, and whose tokens are believed.
//!
//! JSON, of which a field that is not known is an error: what an older waypoint cannot read it refuses, and then everything that the
//! resource is about.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Unreadable, bad, service_key, service_name};
use crate::mesh::{
    PolicyKey, ServiceKey,
    http::{RequestAuthentication, Routes, ServiceRoutes},
};

/// What the names of request authentications begin with; no namespace and hostname have two slashes.
const AUTHENTICATION: &str = "auth/";

/// One resource.
#[derive(Clone, Debug)]
pub enum Http {
    /// Of one service.
    Routes(Arc<Routes>),
    /// Whose tokens are believed.
    Authentication(Arc<RequestAuthentication>),
}

/// The same, as it travels.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Sent<'a> {
    Routes(&'a ServiceRoutes),
    Authentication(&'a RequestAuthentication),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Arrived {
    Routes(Box<ServiceRoutes>),
    Authentication(RequestAuthentication),
}

/// Reads the resource of this name.
///
/// # Errors
/// When it is not of the form, contradicts itself, or is about something else than its name says.
pub fn http(name: &str, bytes: &[u8]) -> Result<Http, Unreadable> {
    let arrived = serde_json::from_slice(bytes).map_err(|err| Unreadable::Encoding(err.to_string()))?;
    match arrived {
        Arrived::Routes(it) => {
            check_name(name, routes_name(&it.service))?;
            let routes = Routes::new(*it).map_err(|err| bad("routes", err))?;
            Ok(Http::Routes(Arc::new(routes)))
        }
        Arrived::Authentication(it) => {
            check_name(name, authentication_name(&it.key))?;
            Ok(Http::Authentication(Arc::new(it)))
        }
    }
}

/// One that is about somebody else would take that one's place, or leave nobody where one is asked for.
fn check_name(name: &str, content: String) -> Result<(), Unreadable> {
    match name == content {
        true => Ok(()),
        false => Err(bad("name", format!("it is about {content}"))),
    }
}

/// The service whose routes have this name; none where it is the name of something else.
pub fn routes_of(name: &str) -> Option<ServiceKey> {
    service_key(name).filter(|key| !key.hostname.contains('/'))
}

/// What routes of a service are called.
pub fn routes_name(key: &ServiceKey) -> String {
    service_name(key)
}

/// What a request authentication is called.
pub fn authentication_name(key: &PolicyKey) -> String {
    format!("{AUTHENTICATION}{key}")
}

/// Routes of a service.
pub fn encode_routes(it: &ServiceRoutes) -> Bytes {
    encode(&Sent::Routes(it))
}

/// A request authentication.
pub fn encode_authentication(it: &RequestAuthentication) -> Bytes {
    encode(&Sent::Authentication(it))
}

/// What cannot be written, which is nothing of these types, is sent as what cannot be read.
fn encode(it: &Sent<'_>) -> Bytes {
    serde_json::to_vec(it).unwrap_or_default().into()
}
