//! The kinds of objects that are read, and where the API has them.

use kube::core::ApiResource;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names are the API's")]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    GatewayClass,
    Gateway,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
    ReferenceGrant,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
    VirtualService,
    DestinationRule,
    /// Istio's own Gateway.
    IstioGateway,
    ServiceEntry,
    WorkloadEntry,
}

/// Group, versions (the best first), kind and plural.
type Names = (&'static str, &'static [&'static str], &'static str, &'static str);

const CORE: &[&str] = &["v1"];
const GATEWAY: &[&str] = &["v1", "v1beta1", "v1alpha2"];
const SECURITY: &[&str] = &["v1", "v1beta1"];
const NETWORKING: &[&str] = &["v1", "v1beta1", "v1alpha3"];

impl Kind {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::Namespace,
        Self::Node,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::GatewayClass,
        Self::Gateway,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
        Self::ReferenceGrant,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::VirtualService,
        Self::DestinationRule,
        Self::IstioGateway,
        Self::ServiceEntry,
        Self::WorkloadEntry,
    ];

    /// The kind of this name in this group, whatever the version.
    pub fn find(group: &str, kind: &str) -> Option<Self> {
        let is = |it: &Self| it.group() == group && it.kind() == kind;
        Self::ALL.into_iter().find(is)
    }

    /// For example `security.istio.io`; empty for Kubernetes' oldest.
    pub fn group(self) -> &'static str {
        self.names().0
    }

    /// The versions that we can read, the best first. A cluster may serve only one of them.
    pub fn versions(self) -> &'static [&'static str] {
        self.names().1
    }

    /// For example `AuthorizationPolicy`.
    pub fn kind(self) -> &'static str {
        self.names().2
    }

    /// For example `authorizationpolicies`.
    pub fn plural(self) -> &'static str {
        self.names().3
    }

    /// Whether a CustomResourceDefinition defines it, so that a cluster may not have it.
    pub fn is_custom(self) -> bool {
        self > Self::EndpointSlice
    }

    /// Whether its objects are in namespaces.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
    }

    /// Where the API has it in this version.
    pub fn api_resource(self, version: &str) -> ApiResource {
        let api_version = match self.group() {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        ApiResource {
            group: self.group().into(),
            version: version.into(),
            api_version,
            kind: self.kind().into(),
            plural: self.plural().into(),
        }
    }

    fn names(self) -> Names {
        let gateway = "gateway.networking.k8s.io";
        let security = "security.istio.io";
        let networking = "networking.istio.io";
        match self {
            Self::Namespace => ("", CORE, "Namespace", "namespaces"),
            Self::Node => ("", CORE, "Node", "nodes"),
            Self::Pod => ("", CORE, "Pod", "pods"),
            Self::Service => ("", CORE, "Service", "services"),
            Self::EndpointSlice => ("discovery.k8s.io", CORE, "EndpointSlice", "endpointslices"),
            Self::GatewayClass => (gateway, GATEWAY, "GatewayClass", "gatewayclasses"),
            Self::Gateway => (gateway, GATEWAY, "Gateway", "gateways"),
            Self::HttpRoute => (gateway, GATEWAY, "HTTPRoute", "httproutes"),
            Self::GrpcRoute => (gateway, GATEWAY, "GRPCRoute", "grpcroutes"),
            Self::TcpRoute => (gateway, GATEWAY, "TCPRoute", "tcproutes"),
            Self::TlsRoute => (gateway, &["v1", "v1alpha3", "v1alpha2"], "TLSRoute", "tlsroutes"),
            Self::ReferenceGrant => (gateway, GATEWAY, "ReferenceGrant", "referencegrants"),
            Self::AuthorizationPolicy => (security, SECURITY, "AuthorizationPolicy", "authorizationpolicies"),
            Self::PeerAuthentication => (security, SECURITY, "PeerAuthentication", "peerauthentications"),
            Self::RequestAuthentication => (
                security,
                SECURITY,
                "RequestAuthentication",
                "requestauthentications",
            ),
            Self::VirtualService => (networking, NETWORKING, "VirtualService", "virtualservices"),
            Self::DestinationRule => (networking, NETWORKING, "DestinationRule", "destinationrules"),
            Self::IstioGateway => (networking, NETWORKING, "Gateway", "gateways"),
            Self::ServiceEntry => (networking, NETWORKING, "ServiceEntry", "serviceentries"),
            Self::WorkloadEntry => (networking, NETWORKING, "WorkloadEntry", "workloadentries"),
        }
    }
}
