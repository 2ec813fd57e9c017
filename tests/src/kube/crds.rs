//! Definitions of Gateway API's and Istio's resources: their names and versions; their schemas take anything. A test that
//! is about schemas applies the projects' own definitions.

use serde_json::{Value, json};

/// group, plural, kind, Namespaced or Cluster, versions from the oldest to the stored one.
const GATEWAY_API: &str = "
gateway.networking.k8s.io gatewayclasses GatewayClass Cluster v1beta1,v1
gateway.networking.k8s.io gateways Gateway Namespaced v1beta1,v1
gateway.networking.k8s.io httproutes HTTPRoute Namespaced v1beta1,v1
gateway.networking.k8s.io grpcroutes GRPCRoute Namespaced v1
gateway.networking.k8s.io tcproutes TCPRoute Namespaced v1alpha2
gateway.networking.k8s.io tlsroutes TLSRoute Namespaced v1alpha2,v1alpha3
gateway.networking.k8s.io referencegrants ReferenceGrant Namespaced v1beta1
gateway.networking.k8s.io backendtlspolicies BackendTLSPolicy Namespaced v1
";

const ISTIO: &str = "
security.istio.io authorizationpolicies AuthorizationPolicy Namespaced v1beta1,v1
security.istio.io peerauthentications PeerAuthentication Namespaced v1beta1,v1
security.istio.io requestauthentications RequestAuthentication Namespaced v1beta1,v1
networking.istio.io virtualservices VirtualService Namespaced v1alpha3,v1beta1,v1
networking.istio.io destinationrules DestinationRule Namespaced v1alpha3,v1beta1,v1
networking.istio.io gateways Gateway Namespaced v1alpha3,v1beta1,v1
networking.istio.io serviceentries ServiceEntry Namespaced v1alpha3,v1beta1,v1
networking.istio.io workloadentries WorkloadEntry Namespaced v1alpha3,v1beta1,v1
networking.istio.io sidecars Sidecar Namespaced v1alpha3,v1beta1,v1
telemetry.istio.io telemetries Telemetry Namespaced v1alpha1,v1
";

pub(super) fn gateway_api() -> Vec<Value> {
    GATEWAY_API.lines().filter_map(definition).collect()
}

pub(super) fn istio() -> Vec<Value> {
    ISTIO.lines().filter_map(definition).collect()
}

fn definition(line: &str) -> Option<Value> {
    let columns: Vec<&str> = line.split(' ').collect();
    let &[group, plural, kind, scope, versions] = columns.as_slice() else {
        return None;
    };
    let stored = versions.rsplit(',').next();
    let versions: Vec<Value> = versions
        .split(',')
        .map(|version| {
            let schema =
                json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
            json!({
                "name": version, "served": true, "storage": Some(version) == stored, "schema": schema,
                "subresources": {"status": {}},
            })
        })
        .collect();
    let names = json!({"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")});
    Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {"group": group, "scope": scope, "names": names, "versions": versions},
    }))
}
