//! Who a client is and what it may do: tokens, and RBAC from the roles and bindings that are stored.

use serde_json::Value;

use super::{
    Server,
    failure::Failure,
    kinds,
    request::{Request, Target},
    store::State,
    tokens,
};

/// Somebody who asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) groups: Vec<String>,
    pub(super) extra: Vec<(String, String)>,
}

/// What an API server has from the start, and clients need before they have any rights of their own.
pub(super) const BOOTSTRAP: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cluster-admin}
rules:
- {apiGroups: ["*"], resources: ["*"], verbs: ["*"]}
- {nonResourceURLs: ["*"], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "system:public-info-viewer"}
rules:
- {nonResourceURLs: [/healthz, /livez, /readyz, /version, /version/], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "system:public-info-viewer"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:public-info-viewer"}
subjects:
- {kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:authenticated"}
- {kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:unauthenticated"}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "system:discovery"}
rules:
- {nonResourceURLs: [/api, "/api/*", /apis, "/apis/*", /openapi, "/openapi/*", /version], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "system:discovery"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:discovery"}
subjects:
- {kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:authenticated"}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: "system:basic-user"}
rules:
- {apiGroups: [authorization.k8s.io], resources: [selfsubjectaccessreviews, selfsubjectrulesreviews], verbs: [create]}
- {apiGroups: [authentication.k8s.io], resources: [selfsubjectreviews], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "system:basic-user"}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:basic-user"}
subjects:
- {kind: Group, apiGroup: rbac.authorization.k8s.io, name: "system:authenticated"}
"#;

/// The user of an `Authorization` header; nobody without one.
pub(super) fn authenticate(server: &Server, header: &str) -> Result<User, Failure> {
    if header.is_empty() {
        return Ok(User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..User::default()
        });
    }
    let token = header.strip_prefix("Bearer ").unwrap_or_default();
    if token == server.admin {
        let groups = ["system:masters", "system:authenticated"];
        return Ok(User {
            name: "admin".into(),
            groups: groups.map(Into::into).to_vec(),
            ..User::default()
        });
    }
    let audiences = [tokens::ISSUER.to_owned()];
    let times = (server.clock.now(), server.clock.wall());
    let reviewed = tokens::review(&mut server.state(), token, &audiences, times);
    reviewed
        .map(|(user, _)| user)
        .map_err(|_| Failure::unauthorized())
}

/// What somebody wants to do.
#[derive(Clone, Debug, Default)]
pub(super) struct Wish<'a> {
    pub(super) verb: &'a str,
    pub(super) group: &'a str,
    /// With its subresource: `pods/status`.
    pub(super) resource: String,
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// Instead of a resource.
    pub(super) path: &'a str,
}

impl<'a> Wish<'a> {
    fn of(request: &'a Request) -> Self {
        let verb = request.verb();
        let Some(Target {
            group,
            plural,
            namespace,
            name,
            sub,
            ..
        }) = &request.target
        else {
            return Self {
                verb,
                path: &request.path,
                ..Self::default()
            };
        };
        let own = plural == "namespaces" && group.is_empty();
        Self {
            verb,
            group,
            resource: if sub.is_empty() {
                plural.clone()
            } else {
                format!("{plural}/{sub}")
            },
            namespace: if own { name } else { namespace },
            name,
            path: "",
        }
    }
}

/// 403, unless the user may.
pub(super) fn authorise(server: &Server, request: &Request) -> Result<(), Failure> {
    let wish = Wish::of(request);
    if allowed(&server.state(), &request.user, &wish).is_some() {
        return Ok(());
    }
    let user = &request.user.name;
    let Some(target) = &request.target else {
        let message = format!(
            "forbidden: User \"{user}\" cannot {} path \"{}\"",
            wish.verb, request.path
        );
        return Err(Failure::new(403, "Forbidden", message).details(serde_json::json!({})));
    };
    let place = match wish.namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace \"{namespace}\""),
    };
    let what = match target.name.as_str() {
        "" => kinds::qualified(&target.plural, &target.group),
        name => format!("{} \"{name}\"", kinds::qualified(&target.plural, &target.group)),
    };
    let message = format!(
        "{what} is forbidden: User \"{user}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
        wish.verb, wish.resource, wish.group
    );
    let mut details = serde_json::json!({"kind": target.plural});
    for (field, value) in [("name", &target.name), ("group", &target.group)] {
        if !value.is_empty() {
            details[field] = value.as_str().into();
        }
    }
    Err(Failure::new(403, "Forbidden", message).details(details))
}

/// Why the user may; "" for one who may everything, `None` for one who may not.
pub(super) fn allowed(state: &State, user: &User, wish: &Wish<'_>) -> Option<String> {
    if user.groups.iter().any(|group| group == "system:masters") {
        return Some(String::new());
    }
    let bindings = state
        .objects("clusterrolebindings.rbac.authorization.k8s.io")
        .map(|binding| binding.value());
    let found = bindings
        .into_iter()
        .find_map(|binding| by_binding(state, user, wish, &binding));
    found.or_else(|| {
        let table = "rolebindings.rbac.authorization.k8s.io";
        let mut bindings = state.within(table, wish.namespace).map(|binding| binding.value());
        bindings.find_map(|binding| by_binding(state, user, wish, &binding))
    })
}

fn by_binding(state: &State, user: &User, wish: &Wish<'_>, binding: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&binding["metadata"]["namespace"]);
    let subjects = binding["subjects"].as_array().into_iter().flatten();
    let subject = subjects
        .into_iter()
        .find(|subject| is_subject(user, subject, &namespace))?;
    let (kind, role) = (
        text(&binding["roleRef"]["kind"]),
        text(&binding["roleRef"]["name"]),
    );
    let found = match kind.as_str() {
        "Role" => state.value("roles.rbac.authorization.k8s.io", &format!("{namespace}/{role}")),
        _ => state.value("clusterroles.rbac.authorization.k8s.io", &role),
    }?;
    let mut rules = found["rules"].as_array().into_iter().flatten();
    rules.find(|rule| permits(rule, wish))?;
    let own = text(&binding["metadata"]["name"]);
    let binding = match namespace.as_str() {
        "" => format!("ClusterRoleBinding \"{own}\""),
        namespace => format!("RoleBinding \"{own}/{namespace}\""),
    };
    let mut who = text(&subject["name"]);
    if subject["kind"] == "ServiceAccount" {
        let of = subject["namespace"].as_str().unwrap_or(&namespace);
        who = format!("{who}/{of}");
    }
    Some(format!(
        "RBAC: allowed by {binding} of {kind} \"{role}\" to {} \"{who}\"",
        text(&subject["kind"])
    ))
}

fn is_subject(user: &User, subject: &Value, namespace: &str) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => name == user.name,
        Some("Group") => user.groups.iter().any(|group| group == name),
        Some("ServiceAccount") => {
            let of = subject["namespace"].as_str().unwrap_or(namespace);
            user.name == format!("system:serviceaccount:{of}:{name}")
        }
        _ => false,
    }
}

fn permits(rule: &Value, wish: &Wish<'_>) -> bool {
    let has = |field: &str, wanted: &str| {
        let all = rule[field]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        all.into_iter().any(|one| {
            one == "*"
                || one == wanted
                || one
                    .strip_suffix('*')
                    .is_some_and(|prefix| field == "nonResourceURLs" && wanted.starts_with(prefix))
                || one
                    .strip_prefix("*/")
                    .is_some_and(|sub| wanted.ends_with(&format!("/{sub}")))
        })
    };
    if !wish.path.is_empty() {
        return has("verbs", wish.verb) && has("nonResourceURLs", wish.path);
    }
    let names = rule["resourceNames"]
        .as_array()
        .is_none_or(|names| names.is_empty() || has("resourceNames", wish.name));
    has("verbs", wish.verb) && has("apiGroups", wish.group) && has("resources", &wish.resource) && names
}
