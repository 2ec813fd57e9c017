//! The codes of what can be wrong: for programs that are to let one of them pass, and for people who look one up. A number is
//! given once and stays; the reason is what conditions and events say.

/// One thing that can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// `WEFT0401` is 401. The hundreds are kinds of things: 0 reading, 1 fields, 2 enrolment, 3 addresses and names, 4
    /// waypoints, 5 policies, 6 routes, 7 traffic, 8 tokens.
    pub number: u16,
    /// As conditions and events have it.
    pub reason: &'static str,
    /// What it means.
    pub means: &'static str,
    /// What to do.
    pub mend: &'static str,
    /// What some files may simply not have.
    pub missing: Option<Missing>,
}

/// What is looked for, and may be in the cluster though it is not among the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A pod, or a WorkloadEntry.
    Workload,
    /// A Service, or a ServiceEntry.
    Service,
    /// The Gateway of a waypoint.
    Waypoint,
    /// What only a running cluster says.
    Status,
    /// A label of the namespace.
    Label,
    /// A DestinationRule.
    Subset,
}

/// The one of a reason.
pub fn code(reason: &str) -> Option<&'static Code> {
    CODES.iter().find(|code| code.reason == reason)
}

macro_rules! codes {
    ($($number:literal $reason:ident $(($missing:ident))?: $means:literal, $mend:literal;)*) => {
        /// All of them, by number.
        pub const CODES: &[Code] = &[$(Code {
            number: $number,
            reason: stringify!($reason),
            means: $means,
            mend: $mend,
            missing: codes!(@missing $($missing)?),
        }),*];
    };
    (@missing) => { None };
    (@missing $missing:ident) => { Some(Missing::$missing) };
}

codes! {
    1 Unreadable: "the text is not YAML, or is too large", "correct the line that is named";
    2 InvalidObject: "Kubernetes would not take the object", "correct the field that is named";
    3 NotAnObject: "a document is no Kubernetes object", "give it apiVersion, kind and metadata.name, or leave the file out";
    4 DefinedTwice: "an object is defined twice, and the last counts", "remove one of the two";
    5 CannotList: "the cluster does not let these objects be listed", "ask for the role, or leave out what depends on them";

    101 InvalidField: "a field cannot be read; what is in doubt about it is closed", "write what the message names";
    102 InvalidName: "a name makes no host name", "choose another name";
    103 InvalidLabel: "a label has a value that it cannot have", "write what the message names";
    104 InvalidAnnotation: "an annotation has a value that it cannot have", "write what the message names";
    105 InvalidAddress: "an address is none that an endpoint can have", "write an IP address of the endpoint";
    106 NoIdentity: "a workload can have no SPIFFE identity", "choose a shorter or a simpler service account";

    201 NotCaptured: "a pod asks to be in the mesh and cannot be", "remove the label, or what keeps the pod out";
    202 UnknownMode: "istio.io/dataplane-mode has a value that means nothing", "write ambient or none";
    203 SidecarInjection: "a sidecar is asked for beside the mesh, and a pod with one is not captured", "remove the injection label and start the pods anew";

    301 AddressTaken: "an address is another object's, which keeps it", "remove it here or there";
    302 HostTaken: "a host is another object's, which keeps it", "remove it here or there";
    303 OwnPort: "a port is one of weft's own", "use another port";
    304 NoAddress: "an endpoint's address is a name, which nobody looks up", "write its IP address";
    305 NoAddresses: "an EndpointSlice has names in place of addresses", "write IPv4 or IPv6 addresses";
    306 DnsResolution: "a ServiceEntry wants names to be looked up, which is not done", "write the endpoints' IP addresses";

    401 NeedsWaypoint(Label): "only a waypoint sees what this asks for, or does what it says", "label the service, or its namespace, istio.io/use-waypoint";
    402 WaypointMissing(Waypoint): "there is no such waypoint, so that connections are refused", "create the Gateway, or correct the label";
    403 WaypointNotAllowed: "the waypoint does not admit this namespace, so that connections are refused", "add allowedRoutes.namespaces to its listener";
    404 WaypointNotFor: "the waypoint is not for what is bound to it", "set its label istio.io/waypoint-for to all";
    405 WaypointNotReady(Status): "the waypoint does not run yet, and until then connections are refused", "wait, or look at its Deployment";
    406 NoHboneListener: "a waypoint's Gateway has no listener with protocol HBONE", "add one with port 15008";
    407 NoWaypoint(Label): "a policy is for a waypoint and its service has none, so that its pods refuse everybody", "label the service istio.io/use-waypoint";
    408 InvalidParameters: "a Gateway's annotations or parameters cannot be read", "write what the message names";
    409 UnsupportedAddress: "a Gateway asks for an address that it cannot have", "write one IP address of the cluster's services";
    410 ListenersNotValid: "a waypoint's Gateway has no listener with protocol HBONE", "add one with port 15008";

    501 SelectsNothing(Workload): "a selector selects no workload", "compare it with the pods' labels";
    502 SelectorIgnored: "a policy has targetRefs and a selector, and the selector does not count", "remove one of them";
    503 TargetMissing(Service): "what a policy is for is not there", "correct the name";
    504 TargetIgnored: "a GatewayClass counts in the root namespace only", "move the policy there";
    505 MeshWide: "it is in the root namespace, and so for the whole mesh", "move it to another namespace if that was not meant";
    507 DisableIgnored: "DISABLE counts as UNSET", "write PERMISSIVE to take plaintext as well";
    508 PortsIgnored: "portLevelMtls counts with a selector only", "add a selector";
    509 Ignored: "an older object says the same for the same workloads, and counts", "remove one of the two";
    510 Closed: "what a policy is for cannot be read whole, so that everything behind any waypoint of its namespace is denied", "mend targetRefs";

    601 AtTheEdge: "it is for a gateway at the edge of the cluster, where weft serves nobody yet", "inside of the mesh use a Service as parent, or gateways: [mesh]";
    602 OnlyGateway: "a VirtualService binds only a gateway, and says nothing inside of the mesh", "add `mesh` to its gateways if it was meant for the mesh";
    603 NoHost: "a VirtualService names no host, and counts only where another delegates to it", "name the service, if it was not meant for that";
    604 UnknownHost(Service): "a host is no service that the mesh knows", "correct the host, or add a Service or a ServiceEntry";
    605 UnknownSubset(Subset): "no DestinationRule of the service has this subset, so that its share of the requests fails", "add the subset, or correct its name";
    606 BackendNotFound(Service): "a backend is not there, so that its share of the requests fails", "correct the name or the port";
    607 RefNotPermitted: "a backend is in another namespace, which does not permit it, so that its share of the requests fails", "add a ReferenceGrant there";
    608 ParentMissing(Service): "the service that a route is for is not there", "correct parentRefs";
    609 Shadowed: "an older VirtualService is about the same host, and counts", "put both into one";
    610 MatchDropped: "an alternative of a match can never hold, and is left out", "correct or remove it";
    611 RuleIgnored: "a rule does not count", "remove it";
    612 NoWeight: "no backend of a rule has a weight, so that its requests fail", "give one of them a weight";
    613 NotSupported: "a field is not done", "remove it, or do without it";
    614 UnknownField: "a field is not known", "correct or remove it";
    615 RetryIgnored: "a condition of a retry is not known", "remove it";
    616 NoMirror: "a mirror leads nowhere", "correct the host";
    617 NoPercentage: "a share is not said", "write a percentage";
    619 ShadowedByRoute: "routes of the Gateway API are for the same service, and come first", "remove one of the two";
    620 ConsumerIgnored: "routes of connections count in the service's own namespace only", "write them there";
    621 NotHttp: "a route of requests is for a port that does not speak HTTP", "correct the port's appProtocol or name, or remove the route";
    622 TooMany: "a service has more matches than are looked at", "write fewer";
    623 ExportToIgnored: "exportTo is not asked", "remove it";
    624 HeaderNotChanged: "a header is the connection's own, and no route changes it", "remove it from the filter";

    701 SubsetSelectsNothing(Workload): "a subset selects none of the service's pods", "compare its labels with the pods'";
    702 TlsIgnored: "client TLS is not switched off inside of the mesh", "remove trafficPolicy.tls";
    703 Elsewhere: "a DestinationRule is in neither the service's namespace nor the root namespace, and does not count", "move it to the service's namespace";

    801 NoRequestAuthentication: "a policy asks for a token that nobody checks", "add a RequestAuthentication for the issuer";
    802 TokensOptional: "bad tokens are refused, and requests without one pass", "add an AuthorizationPolicy with requestPrincipals";
    803 NoRules: "a RequestAuthentication has no rule, and looks at no token", "add jwtRules";
}
