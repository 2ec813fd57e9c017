//! What is served: versions, groups, resources, aggregated or not; health; and as much OpenAPI as clients ask for before
//! they trust the server to check fields.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Server,
    answer::{self, Answer, Content},
    failure::Failure,
    kinds::{self, Kind},
    request::{Request, Shape},
    store::State,
};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

pub(super) fn answer(server: &Server, request: &Request) -> Result<Answer, Failure> {
    let state = server.state();
    let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
    let aggregated = request.shape == Shape::Discovery;
    Ok(match parts.as_slice() {
        ["version"] => answer::json(200, &version()),
        ["healthz" | "livez" | "readyz", ..] => answer::text(200, "ok"),
        ["api" | "apis"] if aggregated => aggregate(&state, request, parts[0] == "api"),
        ["api"] => {
            let cidrs = json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": server.address.to_string()}]);
            answer::json(
                200,
                &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": cidrs}),
            )
        }
        ["apis"] => {
            let groups: Vec<_> = groups(&state)
                .into_iter()
                .filter(|(group, _)| !group.is_empty())
                .collect();
            let groups: Vec<_> = groups
                .iter()
                .map(|(group, versions)| group_of(group, versions))
                .collect();
            answer::json(
                200,
                &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
            )
        }
        ["apis", group] => match groups(&state).get(*group) {
            Some(versions) => {
                let mut body = group_of(group, versions);
                body["kind"] = "APIGroup".into();
                body["apiVersion"] = "v1".into();
                answer::json(200, &body)
            }
            None => absent(),
        },
        ["api", version] => resources(&state, "", version),
        ["apis", group, version] => resources(&state, group, version),
        ["openapi", "v3"] => openapi_index(&state),
        ["openapi", "v3", rest @ ..] => openapi(&state, rest),
        _ => absent(),
    })
}

fn absent() -> Answer {
    answer::text(404, "404 page not found\n")
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "35", "gitVersion": "v1.36.2",
        "gitCommit": "8e16b12fda5b1dccc41a6de48b3e356cc7d5048b", "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "go1.26.6", "compiler": "gc", "platform": "linux/amd64",
    })
}

/// Groups and their versions, preferred first.
fn groups(state: &State) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kind in &state.kinds {
        let versions = groups.entry(kind.group.clone()).or_default();
        for version in &kind.versions {
            if !versions.contains(&version.name) {
                versions.push(version.name.clone());
            }
        }
    }
    groups
}

fn group_of(group: &str, versions: &[String]) -> Value {
    let versions: Vec<_> = versions
        .iter()
        .map(|version| json!({"groupVersion": kinds::api_version(group, version), "version": version}))
        .collect();
    json!({"name": group, "versions": versions, "preferredVersion": versions[0]})
}

fn of_version<'a>(state: &'a State, group: &str, version: &str) -> Vec<&'a Kind> {
    let kinds = state
        .kinds
        .iter()
        .filter(|kind| kind.group == group && kind.version(version).is_some());
    let mut kinds: Vec<&Kind> = kinds.map(AsRef::as_ref).collect();
    kinds.sort_by_key(|kind| kind.plural.clone());
    kinds
}

fn resources(state: &State, group: &str, version: &str) -> Answer {
    let kinds = of_version(state, group, version);
    if kinds.is_empty() {
        return absent();
    }
    let resources: Vec<Value> = kinds.iter().flat_map(|kind| resource(kind, version)).collect();
    let mut list = json!({
        "kind": "APIResourceList", "groupVersion": kinds::api_version(group, version), "resources": resources,
    });
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    answer::json(200, &list)
}

/// A resource and its subresources.
fn resource(kind: &Kind, version: &str) -> Vec<Value> {
    let mut own = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
        "verbs": kind.verbs(),
    });
    names(&mut own, kind);
    if !kind.is_virtual() {
        own["storageVersionHash"] = storage_hash(kind).into();
    }
    let subresources = kind
        .version(version)
        .into_iter()
        .flat_map(|version| &version.subresources);
    let below = subresources.map(|sub| {
        let (name, foreign, verbs) = kinds::subresource(kind, sub);
        let mut shown = json!({
            "name": format!("{}/{sub}", kind.plural), "singularName": "", "namespaced": kind.namespaced, "kind": name,
            "verbs": verbs,
        });
        if let Some((group, version)) = foreign {
            shown["group"] = group.into();
            shown["version"] = version.into();
        }
        shown
    });
    std::iter::once(own).chain(below).collect()
}

fn names(shown: &mut Value, kind: &Kind) {
    for (field, names) in [("shortNames", &kind.short), ("categories", &kind.categories)] {
        if !names.is_empty() {
            shown[field] = json!(names);
        }
    }
}

fn storage_hash(kind: &Kind) -> String {
    let of = format!("{}/{}/{}", kind.group, kind.versions[0].name, kind.kind);
    STANDARD.encode(&digest::digest(&digest::SHA256, of.as_bytes()).as_ref()[..8])
}

fn aggregate(state: &State, request: &Request, core: bool) -> Answer {
    let groups = groups(state);
    let chosen = groups.iter().filter(|(group, _)| group.is_empty() == core);
    let items: Vec<_> = chosen
        .map(|(group, versions)| {
            let metadata = if core { json!({}) } else { json!({"name": group}) };
            let versions: Vec<_> = versions
                .iter()
                .map(|version| aggregated_version(state, group, version))
                .collect();
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let body = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    let body = serde_json::to_vec(&body).unwrap_or_default();
    let digest = digest::digest(&digest::SHA512, &body);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    let etag = format!("\"{hex}\"");
    let known = request.if_none_match == etag;
    let content = Content::Whole((!known).then(|| Bytes::from(body)));
    let mut answer = answer::answer(if known { 304 } else { 200 }, AGGREGATED, content);
    if known {
        answer.headers_mut().remove(http::header::CONTENT_TYPE);
    }
    answer.headers_mut().remove(http::header::CACHE_CONTROL);
    let answer = answer::with(answer, "cache-control", "public");
    answer::with(answer::with(answer, "etag", &etag), "vary", "Accept")
}

fn aggregated_version(state: &State, group: &str, version: &str) -> Value {
    let resources: Vec<_> = of_version(state, group, version)
        .into_iter()
        .map(|kind| aggregated(kind, version))
        .collect();
    json!({"version": version, "resources": resources, "freshness": "Current"})
}

fn aggregated(kind: &Kind, version: &str) -> Value {
    // Built-in resources do not say their own group here.
    let own = if kind.custom {
        (kind.group.as_str(), version)
    } else {
        ("", "")
    };
    let mut shown = json!({
        "resource": kind.plural, "responseKind": {"group": own.0, "version": own.1, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": kind.singular,
        "verbs": kind.verbs(),
    });
    names(&mut shown, kind);
    let subresources = kind
        .version(version)
        .into_iter()
        .flat_map(|version| &version.subresources);
    let below: Vec<_> = subresources
        .map(|sub| {
            let (name, foreign, verbs) = kinds::subresource(kind, sub);
            let (group, version) = foreign.unwrap_or(own);
            json!({"subresource": sub, "responseKind": {"group": group, "version": version, "kind": name}, "verbs": verbs})
        })
        .collect();
    if !below.is_empty() {
        shown["subresources"] = below.into();
    }
    shown
}

fn openapi_index(state: &State) -> Answer {
    let mut paths: BTreeMap<String, Value> = BTreeMap::new();
    let mut add = |path: String| {
        let url = format!("/openapi/v3/{path}?hash=0");
        paths.insert(path, json!({"serverRelativeURL": url}));
    };
    add(".well-known/openid-configuration".into());
    add("api".into());
    for (group, versions) in groups(state) {
        for version in versions {
            add(if group.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{group}/{version}")
            });
        }
    }
    let body = serde_json::to_vec(&json!({"paths": paths})).unwrap_or_default();
    answer::answer(
        200,
        "text/plain; charset=utf-8",
        Content::Whole(Some(body.into())),
    )
}

/// That a patch takes `fieldValidation`, for each kind of a group's version: what clients look for.
fn openapi(state: &State, path: &[&str]) -> Answer {
    let (group, version) = match path {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return absent(),
    };
    let mut paths = BTreeMap::new();
    for kind in of_version(state, group, version) {
        let place = if kind.namespaced {
            "namespaces/{namespace}/"
        } else {
            ""
        };
        let parameter = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
        let parameters = ["dryRun", "fieldManager", "fieldValidation"].map(parameter);
        let gvk = json!({"group": group, "version": version, "kind": kind.kind});
        let patch =
            json!({"parameters": parameters, "responses": {}, "x-kubernetes-group-version-kind": gvk});
        let path = format!("/{}/{place}{}/{{name}}", path.join("/"), kind.plural);
        paths.insert(path, json!({"patch": patch}));
    }
    let info = json!({"title": "Kubernetes", "version": "v1.36.2"});
    answer::json(200, &json!({"openapi": "3.0.0", "info": info, "paths": paths}))
}
