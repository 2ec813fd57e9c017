//! What is kept of objects, and where the API has them.

use serde_json::json;

use super::*;

#[test]
fn a_pod_keeps_only_what_is_read() {
    let mut pod: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "cart-1", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 3,
            "labels": {"app": "cart"},
            "annotations": {"weft.dev/same-node": "tunnel", "kubectl.kubernetes.io/restartedAt": "x"},
            "managedFields": [{"manager": "kubelet", "operation": "Update"}],
            "finalizers": ["x/y"],
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1"},
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-6b", "uid": "2", "controller": true},
            ],
        },
        "spec": {
            "nodeName": "n1", "serviceAccountName": "cart", "volumes": [{"name": "v"}],
            "containers": [
                {"name": "a", "image": "i", "ports": [{"containerPort": 80}, {"name": "http", "containerPort": 8080}]},
                {"name": "b", "image": "i", "ports": null},
            ],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}],
        },
    }))
    .unwrap();
    pod.trim();
    assert!(pod.is_ready());
    assert_eq!(pod.named_ports().collect::<Vec<_>>(), [("http", 8080)]);
    let kept = serde_json::to_value(&pod).unwrap();
    let metadata = &kept["metadata"];
    assert_eq!(metadata["annotations"], json!({"weft.dev/same-node": "tunnel"}));
    assert_eq!(metadata["ownerReferences"].as_array().unwrap().len(), 1);
    for gone in ["managedFields", "resourceVersion", "generation", "finalizers"] {
        assert!(metadata.get(gone).is_none(), "{gone}");
    }
    assert_eq!(kept["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(kept["status"]["conditions"].as_array().unwrap().len(), 1);
}

#[test]
fn lists_that_are_null_are_empty() {
    let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4", "endpoints": null, "ports": null});
    let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
    assert!(slice.endpoints.is_empty() && slice.ports.is_empty());
    let service =
        json!({"metadata": {"name": "s"}, "spec": {"ports": null, "selector": null}, "status": null});
    let service: Service = serde_json::from_value(service).unwrap();
    assert!(service.spec.ports.is_empty());
}

#[test]
fn a_custom_object_takes_any_spec() {
    for spec in [json!(null), json!("text"), json!([1]), json!({"rules": 7})] {
        let object = json!({"apiVersion": "security.istio.io/v1", "metadata": {"name": "p"}, "spec": spec});
        let object: Custom = serde_json::from_value(object).unwrap();
        assert_eq!(object.spec, spec);
    }
}

#[test]
fn every_kind_has_a_place_of_its_own() {
    for kind in Kind::ALL {
        assert_eq!(Kind::find(kind.group(), kind.kind()), Some(kind));
    }
    let resource = Kind::IstioGateway.api_resource("v1alpha3");
    assert_eq!(resource.api_version, "networking.istio.io/v1alpha3");
    assert_eq!(
        <Custom as kube::Resource>::url_path(&resource, Some("shop")),
        "/apis/networking.istio.io/v1alpha3/namespaces/shop/gateways"
    );
    assert_eq!(<Pod as kube::Resource>::url_path(&(), None), "/api/v1/pods");
}
