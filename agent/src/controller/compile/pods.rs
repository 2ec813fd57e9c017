//! Pods as workloads: who they are, where they run, what made them, and whether they are in the mesh.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;

use super::{
    claims::{Claim, Owner, Rank, Thing},
    drafts::{Draft, Source},
    kept_pod::KeptPod,
    namespace::{Pass, annotation_value, label},
    waypoints::{Consumer, waypoint},
};
use crate::{
    cluster::{
        enrolment::{self, Candidate, Outside, Verdict},
        labels,
        objects::Kind,
    },
    manifests::Severity,
    mesh::{Locality, SpiffeId, TunnelProtocol, Workload, WorkloadType, values},
};

/// The letters of a ReplicaSet's hash: no vowels, and no digits that look like some.
const HASH_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Adds the namespace's pods: those that have a node and have not come to their end.
pub(super) fn pods(pass: &mut Pass<'_>) {
    let unwell = unwell(pass);
    let objects = pass.objects;
    for (name, pod) in &objects.pods {
        if pod.is_over || pod.node.is_none() {
            continue;
        }
        let Some(mut workload) = workload(pod, pass) else {
            continue;
        };
        workload.healthy &= !unwell.contains(&**name);
        let owner = Owner {
            namespace: pass.namespace.clone(),
            kind: Kind::Pod,
            name: workload.name.clone(),
        };
        if !workload.host_network {
            let rank = match pod.is_leaving {
                false => Rank::Pod,
                true => Rank::LeavingPod,
            };
            let claims = workload.addresses.iter().map(|address| Claim {
                thing: Thing::Address(IpNet::from(*address)),
                rank,
                since: 0,
                owner: owner.clone(),
            });
            pass.unit.claims.extend(claims);
        }
        let source = Source::Pod(pod);
        pass.drafts.all.push(Draft {
            workload,
            owner,
            source,
        });
    }
}

/// The pods that an EndpointSlice says are not to be sent anything.
fn unwell<'a>(pass: &Pass<'a>) -> BTreeSet<&'a str> {
    let slices = pass.objects.endpoint_slices.values();
    let endpoints = slices.flat_map(|slice| &slice.endpoints);
    let unwell = endpoints.filter(|endpoint| !endpoint.conditions.is_well());
    unwell
        .filter_map(|endpoint| {
            let target = endpoint.target_ref.as_ref()?;
            let is_pod = target.kind.as_deref() == Some("Pod");
            target.name.as_deref().filter(|_| is_pod)
        })
        .collect()
}

/// None where it can have no identity.
fn workload<'a>(pod: &'a KeptPod, pass: &mut Pass<'a>) -> Option<Workload> {
    let settings = pass.cx.settings;
    let namespace = pass.namespace.clone();
    let account = pod.service_account.as_deref().unwrap_or("default");
    let identity = SpiffeId::new(&settings.trust_domain, &namespace, account);
    let verdict = verdict(pod, pass);
    let same_node = (!pod.annotations.is_empty()).then(|| {
        let mut reader = pass.reader_of(pod.reference());
        annotation_value(
            Some(&pod.annotations),
            labels::SAME_NODE,
            &mut reader,
            values::same_node,
        )
    });
    let same_node = same_node.flatten();
    let identity = match identity {
        Ok(identity) => identity,
        Err(error) => {
            let mut reader = pass.reader_of(pod.reference());
            let message = format!("{error}: choose a shorter or a simpler name");
            reader.tell(Severity::Error, "NoIdentity", message);
            return None;
        }
    };
    let of_pod = Some(&*pod.labels);
    let (workload_name, workload_type) = made_by(pod);
    let text = |keys: &[&str]| keys.iter().find_map(|key| label(of_pod, key)).map(Arc::from);
    let name = &pod.name;
    let native = verdict == Verdict::Outside(Outside::Waypoint);
    let waypoint = match native || pod.host_network {
        true => None,
        false => waypoint(pass, Some(&pod.labels), || pod.reference(), Consumer::Workload),
    };
    Some(Workload {
        uid: format!("{}//Pod/{namespace}/{name}", settings.cluster).into(),
        name: name.clone(),
        identity,
        addresses: pod.addresses.to_vec(),
        node: pod.node.clone().unwrap_or_default(),
        tunnel_protocol: match native || verdict.is_enrolled() {
            true => TunnelProtocol::Hbone,
            false => TunnelProtocol::None,
        },
        canonical_name: text(&values::CANONICAL_NAME).unwrap_or_else(|| workload_name.clone()),
        canonical_revision: text(&values::CANONICAL_REVISION).unwrap_or_else(|| "latest".into()),
        workload_name,
        workload_type,
        cluster: settings.cluster.clone(),
        network: text(&[labels::NETWORK]).unwrap_or_default(),
        locality: locality(pod, pass),
        capacity: 1,
        healthy: pod.is_ready,
        host_network: pod.host_network,
        native_tunnel: native,
        waypoint,
        same_node,
        policies: Vec::new(),
        services: Default::default(),
        subsets: Vec::new(),
        authentications: Vec::new(),
        namespace,
    })
}

/// Whether it is in the mesh. What weft itself runs in never is.
fn verdict(pod: &KeptPod, pass: &mut Pass<'_>) -> Verdict {
    let verdict = match *pass.namespace == pass.cx.settings.own_namespace {
        true => Verdict::Outside(Outside::Unlabelled),
        false => enrolment::verdict(Candidate {
            labels: &pod.labels,
            annotations: &pod.annotations,
            namespace: pass.labels(),
            host_network: pod.host_network,
            ended: false,
        }),
    };
    let asks = label(Some(&pod.labels), enrolment::DATAPLANE_MODE) == Some(enrolment::AMBIENT);
    let why = match verdict {
        Verdict::Outside(Outside::Unlabelled) if asks => "it is in weft's own namespace".to_owned(),
        Verdict::Outside(why @ Outside::HostNetwork) if asks => why.to_string(),
        Verdict::Outside(why @ Outside::Sidecar) if asks => why.to_string(),
        other => return other,
    };
    let message = format!("is labelled istio.io/dataplane-mode=ambient and not captured: {why}");
    let mut reader = pass.reader_of(pod.reference());
    reader.tell(Severity::Warning, "NotCaptured", message);
    verdict
}

fn locality(pod: &KeptPod, pass: &Pass<'_>) -> Locality {
    if let Some(own) = label(Some(&pod.labels), labels::LOCALITY) {
        return written_locality(own, '.');
    }
    let node = pod.node.as_deref().and_then(|name| pass.cx.nodes.get(name));
    let of_node = node.and_then(|node| node.metadata.labels.as_ref());
    let text = |key| label(of_node, key).unwrap_or_default().into();
    Locality {
        region: text(labels::REGION),
        zone: text(labels::ZONE),
        subzone: text(labels::SUBZONE),
    }
}

/// `region/zone/subzone`; labels, which cannot have a `/`, have a `.` in its place.
pub(super) fn written_locality(text: &str, separator: char) -> Locality {
    let mut parts = text.splitn(3, separator).map(Arc::from);
    let mut next = || parts.next().unwrap_or_default();
    Locality {
        region: next(),
        zone: next(),
        subzone: next(),
    }
}

/// The workload that a pod is a pod of, for telemetry.
fn made_by(pod: &KeptPod) -> (Arc<str>, WorkloadType) {
    let of_pod = Some(&*pod.labels);
    let owner = pod.made_by.as_ref();
    let (made_by, kind) = match owner.map(|(kind, name)| (&**kind, &**name)) {
        Some(("ReplicaSet", set)) => match deployment(set, label(of_pod, labels::POD_TEMPLATE_HASH)) {
            Some(deployment) => (deployment, WorkloadType::Deployment),
            None => (set, WorkloadType::Pod),
        },
        Some(("Deployment", deployment)) => (deployment, WorkloadType::Deployment),
        Some(("Job", job)) => match cron_job(job) {
            Some(cron_job) => (cron_job, WorkloadType::CronJob),
            None => (job, WorkloadType::Job),
        },
        Some(("CronJob", cron_job)) => (cron_job, WorkloadType::CronJob),
        // A StatefulSet or a DaemonSet: there is no type of theirs.
        Some((_, other)) => (other, WorkloadType::Pod),
        None => (&*pod.name, WorkloadType::Pod),
    };
    (
        label(of_pod, labels::WORKLOAD_NAME).unwrap_or(made_by).into(),
        kind,
    )
}

/// The Deployment of a ReplicaSet, which adds a hash to its name.
fn deployment<'n>(replica_set: &'n str, hash: Option<&str>) -> Option<&'n str> {
    let (deployment, end) = replica_set.rsplit_once('-')?;
    let looks_like_one = || (5..=10).contains(&end.len()) && end.bytes().all(|it| HASH_LETTERS.contains(&it));
    let is_hash = hash.map_or_else(looks_like_one, |hash| hash == end);
    Some(deployment).filter(|name| is_hash && !name.is_empty())
}

/// The CronJob of a Job, which adds the minute to its name.
fn cron_job(job: &str) -> Option<&str> {
    let (cron_job, end) = job.rsplit_once('-')?;
    let is_minute = (8..=10).contains(&end.len()) && end.bytes().all(|it| it.is_ascii_digit());
    Some(cron_job).filter(|name| is_minute && !name.is_empty())
}
