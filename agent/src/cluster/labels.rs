//! The labels and annotations that mean something to weft, under the names that Kubernetes, the Gateway API and Istio's
//! ambient mode gave them, and the few of our own. Those that say which pods are captured are in `enrolment`.

/// An annotation of pods: only what they send is captured.
pub const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";

/// Namespace, Service, ServiceEntry, Pod, WorkloadEntry: the name of a waypoint, or `none` for none.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// The same: the waypoint's namespace, where it is another one.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// Gateway, GatewayClass: `service`, `workload`, `all` or `none`.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// The condition of Services, ServiceEntries and WorkloadEntries that says whether a waypoint is in front of them.
pub const WAYPOINT_BOUND: &str = "istio.io/WaypointBound";
/// The condition of namespaces that says whether every pod that is to be captured is.
pub const PODS_CAPTURED: &str = "weft.dev/PodsCaptured";
/// What is made for a Gateway: its name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// What is made for a Gateway: the name of its class.
pub const GATEWAY_CLASS_NAME: &str = "gateway.networking.k8s.io/gateway-class-name";
/// The classes of Gateways that are waypoints.
pub const WAYPOINT_CLASSES: [&str; 2] = ["weft-waypoint", "istio-waypoint"];
/// The controller of GatewayClass `weft-waypoint`.
pub const CONTROLLER_NAME: &str = "weft.dev/mesh-controller";

/// What is made for a Gateway, as Istio marks it too.
pub const MANAGED: (&str, &str) = ("gateway.istio.io/managed", "istio.io-mesh-controller");
/// What is made for a Gateway by us.
pub const WAYPOINT_MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "weft");
/// An annotation of Gateways that are waypoints: how many pods it has.
pub const WAYPOINT_REPLICAS: &str = "weft.dev/waypoint-replicas";
/// The same: at least so many, where their number follows the load.
pub const WAYPOINT_MIN_REPLICAS: &str = "weft.dev/waypoint-min-replicas";
/// The same: at most so many. Their number follows the load where it is there.
pub const WAYPOINT_MAX_REPLICAS: &str = "weft.dev/waypoint-max-replicas";
/// The same: the CPU that each pod asks for, as Kubernetes writes it.
pub const WAYPOINT_CPU: &str = "weft.dev/waypoint-cpu";
/// The same: the memory that each pod asks for, and may have.
pub const WAYPOINT_MEMORY: &str = "weft.dev/waypoint-memory";

/// An annotation of namespaces and pods: `kernel` or `tunnel`.
pub const SAME_NODE: &str = "weft.dev/same-node";
/// An annotation of AuthorizationPolicies: evaluated, never enforced.
pub const DRY_RUN: &str = "istio.io/dry-run";
/// An annotation of Namespace, Service, ServiceEntry; as `trafficDistribution` of a Service.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// A label of the endpoints of a ServiceEntry and of WorkloadEntries: `http` for those that take HBONE.
pub const TUNNEL: &str = "networking.istio.io/tunnel";
/// A label of ServiceEntries: `false` where no address is to be made up for its hosts.
pub const AUTO_ALLOCATE: &str = "networking.istio.io/enable-autoallocate-ip";

/// The region of a node.
pub const REGION: &str = "topology.kubernetes.io/region";
/// The zone of a node.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// The subzone of a node.
pub const SUBZONE: &str = "topology.istio.io/subzone";
/// A pod's locality where it is not its node's: `region.zone.subzone`.
pub const LOCALITY: &str = "topology.istio.io/locality";
/// The network of a pod.
pub const NETWORK: &str = "topology.istio.io/network";
/// The name under which a pod's telemetry goes, in place of what made it.
pub const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
/// What a Deployment's ReplicaSets add to its name.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// The Service of an EndpointSlice.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
