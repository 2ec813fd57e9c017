//! Enrolment: what this node has captured, turn by turn, as `plan` says; and what must hold of every step.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use weft_pure::{
    mesh::{Mesh, MtlsMode, Workload},
    plan::{Action, Desired, plan},
};

use crate::{
    draw::Draw,
    oracle::authorize,
    world::{NODE, PORTS, World},
};

type Pods = BTreeMap<Arc<str>, Desired>;

/// The node's state.
#[derive(Default)]
pub(crate) struct Enrolment {
    captured: Pods,
}

impl Enrolment {
    /// One turn of the loop, some of whose captures fail, and one in which all succeed.
    ///
    /// # Errors
    /// What did not hold.
    pub(crate) fn turn(&mut self, world: &World, mesh: &Mesh, draw: &mut Draw) -> Result<(), String> {
        let desired = desired(world, mesh)?;
        // A path that leads to another namespace by now, or a pod of an agent that has ended.
        for captured in self.captured.values_mut() {
            if draw.percent(5) {
                captured.netns = PathBuf::new();
            }
        }
        let failing = *draw.pick(&[0, 30]);
        self.apply(&desired, |_| draw.percent(failing))?;
        self.apply(&desired, |_| false)?;
        if self.captured != desired {
            return Err(format!("captured {:#?}\nbut desired {desired:#?}", self.captured));
        }
        match plan(&desired, &self.captured).as_slice() {
            [] => Ok(()),
            more => Err(format!("nothing is left to do, but the plan is {more:?}")),
        }
    }

    fn apply(&mut self, desired: &Pods, mut fails: impl FnMut(&str) -> bool) -> Result<(), String> {
        for action in plan(desired, &self.captured) {
            match &action {
                Action::Release(uid) if desired.contains_key(uid) => {
                    return Err(format!("{uid} is released, but wanted"));
                }
                Action::Release(uid) => drop(self.captured.remove(uid)),
                Action::Capture(uid) => {
                    let want = desired
                        .get(uid)
                        .ok_or_else(|| format!("{uid} is captured, but nobody wants it"))?;
                    self.check_no_stranger_has(uid, want, desired)?;
                    if !fails(uid) {
                        self.captured.insert(uid.clone(), want.clone());
                    }
                }
                Action::SetModes(uid) => {
                    let (want, is) = desired
                        .get(uid)
                        .zip(self.captured.get_mut(uid))
                        .ok_or_else(|| format!("{uid} is not captured"))?;
                    if want.netns != is.netns {
                        return Err(format!("{uid} is another pod by now, and only its modes are set"));
                    }
                    is.modes = want.modes.clone();
                }
            }
        }
        Ok(())
    }

    /// When a pod is captured, no pod that should not be there is captured with one of its addresses.
    fn check_no_stranger_has(&self, uid: &Arc<str>, want: &Desired, desired: &Pods) -> Result<(), String> {
        let shares = |is: &Desired| {
            is.addresses
                .iter()
                .any(|address| want.addresses.contains(address))
        };
        let strangers = self
            .captured
            .iter()
            .filter(|(other, _)| *other != uid && !desired.contains_key(*other));
        match strangers.into_iter().find(|(_, is)| shares(is)) {
            Some((other, _)) => Err(format!(
                "{uid} is captured while {other}, which went, still has its address"
            )),
            None => Ok(()),
        }
    }
}

/// This node's pods of the mesh, as the agent wants them.
fn desired(world: &World, mesh: &Mesh) -> Result<Pods, String> {
    let here = |workload: &&Workload| {
        &*workload.node == NODE && !workload.host_network && !workload.addresses.is_empty()
    };
    let mut pods = Pods::new();
    for workload in world.workloads().filter(here) {
        let modes = mesh.strict_ports(workload);
        for port in PORTS {
            let (kernel, expect) = (
                *modes.ports.get(&port).unwrap_or(&modes.mode),
                authorize::mode(world, workload, port),
            );
            if kernel != expect {
                return Err(format!(
                    "the kernel is told {kernel:?} for port {port} of {}, but it is {expect:?}",
                    workload.uid
                ));
            }
        }
        let netns = world
            .netns
            .get(&workload.uid)
            .map(|netns| format!("/run/netns/{netns}"));
        #[allow(
            clippy::needless_update,
            reason = "it may have fields that do not matter here"
        )]
        let desired = Desired {
            netns: netns.unwrap_or_default().into(),
            addresses: workload.addresses.clone(),
            dns: modes.mode == MtlsMode::Strict,
            modes,
            ..Desired::default()
        };
        pods.insert(workload.uid.clone(), desired);
    }
    Ok(pods)
}
