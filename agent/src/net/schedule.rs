//! When the threads that carry traffic get their turns. A message passes four threads of two agents, and where more wants to run
//! than there are cores, each of them waits for whoever runs there.
//!
//! Such a thread asks for short slices: no more time than by default, but sooner (EEVDF, Linux 6.12; older kernels ignore it). And
//! it says what its waking up does to whoever runs:
//!
//! - [`Manner::Interrupts`] (SCHED_OTHER), as a rule: it runs at once. What computes does not sleep, and whoever waits for it waits
//!   for some 3 ms, on one hop in a hundred.
//! - [`Manner::Waits`] (SCHED_BATCH), while there is much to carry: whoever runs, runs on until it sleeps. Then that is mostly the one
//!   that has just sent something and is about to wait itself, or another worker: to interrupt it costs two switches more.
//!
//! Which it is, [`adapt`] sees by how much the agent has to do, and what else the node has.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::OnceLock, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// In nanoseconds: the shortest that the kernel takes.
const SLICE: u64 = 100_000;
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);
/// Much to carry is one part in so many of a core.
const MUCH: u64 = 8;
/// One part in so many of the node's time: where less is idle, it is crowded.
const IDLE: u64 = 20;
/// One part in so many of the time that is not idle: where we have less of it, others do not sleep. Where traffic is all that a node
/// has, its agent has a fifth and more of it.
const OWN: u64 = 8;

/// What the waking up of a thread does to whoever runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Waits,
    Interrupts,
}

impl Manner {
    fn policy(self) -> u32 {
        match self {
            Self::Waits => libc::SCHED_BATCH,
            Self::Interrupts => libc::SCHED_OTHER,
        }
        .cast_unsigned()
    }
}

/// For a thread that begins to carry traffic.
pub(crate) fn interrupt() {
    take(Manner::Interrupts);
}

/// For one that carries bulk.
pub(crate) fn wait() {
    take(Manner::Waits);
}

fn take(manner: Manner) {
    // A kernel's or a seccomp filter's refusal: nothing but speed depends on it.
    if let Err(error) = set(manner) {
        tracing::debug!(%error, ?manner, "the kernel grants no turns of our choice: small messages wait longer on a busy node");
    }
}

/// Whether nobody else has chosen: what an administrator has, for the whole process, stays. The first thread knows; the next ones
/// begin as the one that starts them.
static FREE: OnceLock<bool> = OnceLock::new();

/// Of the calling thread.
fn set(manner: Manner) -> io::Result<()> {
    let mut attr = attributes()?;
    let ours = [Manner::Waits, Manner::Interrupts].map(Manner::policy);
    let is_free = *FREE.get_or_init(|| attr.sched_policy == Manner::Interrupts.policy());
    if !is_free || !ours.contains(&attr.sched_policy) {
        return Ok(());
    }
    attr.sched_policy = manner.policy();
    attr.sched_runtime = SLICE;
    // SAFETY: the kernel reads what `attr.size`, which it has written itself, says.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) })
}

fn attributes() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: plain numbers, of which zero is a value.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes no more than `size` bytes, and only of this thread (0).
    done(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) })?;
    Ok(attr)
}

fn done(answer: libc::c_long) -> io::Result<()> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Lets the threads that carry messages have the manner that fits, as long as it is polled. `on_each` runs what it is given on each
/// of them.
pub(crate) async fn adapt(on_each: impl Fn(fn())) {
    adapt_by(Look::now, on_each).await;
}

async fn adapt_by(look: impl Fn(Option<&Look>) -> Look, on_each: impl Fn(fn())) {
    let (mut before, mut manner) = (look(None), Manner::Interrupts);
    loop {
        sleep(LOOK).await;
        let now = look(Some(&before));
        let fits = now.manner_since(&before);
        if fits != std::mem::replace(&mut manner, fits) {
            on_each(match fits {
                Manner::Interrupts => interrupt,
                Manner::Waits => wait,
            });
        }
        before = now;
    }
}

/// What was seen at one moment, in ns.
#[derive(Clone, Debug)]
struct Look {
    /// Since the node started.
    at: u64,
    /// Processor time of this process.
    own: u64,
    /// Of all cores since the node started; where there is not much to carry, nobody has looked.
    node: Option<Usage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    idle: u64,
    busy: u64,
}

impl Look {
    fn now(before: Option<&Self>) -> Self {
        let [at, own] = [ClockId::Monotonic, ClockId::ProcessCPUTime].map(nanos);
        let mut look = Self { at, own, node: None };
        if before.is_some_and(|before| look.has_much_since(before)) {
            look.node = Usage::read();
        }
        look
    }

    fn has_much_since(&self, before: &Self) -> bool {
        self.own_since(before) * MUCH > self.at.saturating_sub(before.at)
    }

    fn own_since(&self, before: &Self) -> u64 {
        self.own.saturating_sub(before.own)
    }

    fn manner_since(&self, before: &Self) -> Manner {
        let is_free = match (&before.node, &self.node) {
            (Some(before_all), Some(all)) => !all.is_crowded_since(before_all, self.own_since(before)),
            // Said by the next look.
            (None, Some(_)) => true,
            // Where nobody knows, it must not wait.
            (_, None) => false,
        };
        if is_free && self.has_much_since(before) {
            Manner::Waits
        } else {
            Manner::Interrupts
        }
    }
}

impl Usage {
    fn read() -> Option<Self> {
        let stat = File::open("/proc/stat").ok()?;
        // The first line is the sum, and of at most ten numbers.
        let mut text = [0; 256];
        let length = stat.read_at(&mut text, 0).ok()?;
        of_all_cores(str::from_utf8(text.get(..length)?).ok()?)
    }

    /// Whether others leave nothing, where this process has had `own`.
    fn is_crowded_since(&self, before: &Self, own: u64) -> bool {
        let idle = self.idle.saturating_sub(before.idle);
        let busy = self.busy.saturating_sub(before.busy);
        idle * IDLE < idle + busy && own * OWN < busy
    }
}

fn nanos(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// What is idle and what is not, in ns, of /proc/stat: "cpu user nice system idle iowait irq softirq ..." in hundredths of a second
/// (proc(5)). What a hypervisor has taken is neither.
fn of_all_cores(stat: &str) -> Option<Usage> {
    const HUNDREDTH: u64 = 10_000_000;
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?;
    let numbers: Vec<u64> = numbers
        .split_ascii_whitespace()
        .take(7)
        .map(|number| number.parse().ok())
        .collect::<Option<_>>()?;
    let [user, nice, system, idle, iowait, irq, softirq] = numbers[..] else {
        return None;
    };
    let busy = [user, nice, system, irq, softirq]
        .into_iter()
        .fold(0, u64::saturating_add);
    let scaled = |hundredths: u64| hundredths.saturating_mul(HUNDREDTH);
    Some(Usage {
        idle: scaled(idle.saturating_add(iowait)),
        busy: scaled(busy),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use tokio::time::timeout;

    use super::*;

    #[test]
    fn the_kernel_takes_both() {
        for manner in [Manner::Waits, Manner::Interrupts, Manner::Waits] {
            set(manner).unwrap();
            assert_eq!(attributes().unwrap().sched_policy, manner.policy());
        }
        // Who is started begins so, and may change.
        let child = std::thread::spawn(|| {
            assert_eq!(attributes().unwrap().sched_policy, Manner::Waits.policy());
            interrupt();
            assert_eq!(attributes().unwrap().sched_policy, Manner::Interrupts.policy());
        });
        child.join().unwrap();
    }

    #[test]
    fn what_an_administrator_has_chosen_stays() {
        wait();
        let mut attr = attributes().unwrap();
        attr.sched_policy = libc::SCHED_IDLE.cast_unsigned();
        // SAFETY: as in `set`.
        done(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).unwrap();
        interrupt();
        wait();
        assert_eq!(attributes().unwrap().sched_policy, attr.sched_policy);
    }

    #[test]
    fn the_kernels_sums_are_read() {
        let stat = "cpu  1 2 4 100 10 8 16 5 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        let usage = Usage {
            idle: 1_100_000_000,
            busy: 310_000_000,
        };
        assert_eq!(of_all_cores(stat), Some(usage));
        for bad in [
            "",
            "cpu",
            "cpu  1 2 3",
            "cpu  1 2 x 4 5 6 7",
            "cpu0 1 2 3 4 5 6 7",
        ] {
            assert_eq!(of_all_cores(bad), None, "{bad}");
        }
        assert!(Usage::read().is_some());
        let first = Look::now(None);
        assert!(first.own > 0 && first.node.is_none());
        // As if all that it has ever had were of this moment.
        let before = Look {
            own: 0,
            ..first.clone()
        };
        assert!(Look::now(Some(&before)).node.is_some());
    }

    /// Looks one after the other: what the agent, others and nobody had of two cores, in ms.
    fn looks(spans: &[(u64, u64, u64)]) -> Vec<Look> {
        let first = Look {
            at: 5,
            own: 6,
            node: Some(Usage { idle: 7, busy: 8 }),
        };
        let next = |before: &mut Look, &(own, others, idle): &(u64, u64, u64)| {
            before.at += (own + others + idle) * 1_000_000 / 2;
            before.own += own * 1_000_000;
            let node = before.node.as_mut()?;
            node.idle += idle * 1_000_000;
            node.busy += (own + others) * 1_000_000;
            Some(before.clone())
        };
        let rest = spans.iter().scan(first.clone(), next);
        std::iter::once(first.clone()).chain(rest).collect()
    }

    #[test]
    fn waits_where_there_is_much_to_carry_and_others_leave_something() {
        let of = |span| {
            let looks = looks(&[span]);
            looks[1].manner_since(&looks[0])
        };
        assert_eq!(of((10, 50, 340)), Manner::Interrupts, "little");
        assert_eq!(
            of((10, 390, 0)),
            Manner::Interrupts,
            "little, beside what computes"
        );
        assert_eq!(of((45, 355, 0)), Manner::Interrupts, "more, beside what computes");
        assert_eq!(of((45, 100, 255)), Manner::Waits, "much, and idle cores");
        assert_eq!(of((100, 300, 0)), Manner::Waits, "busy with traffic");
        let mut unknown = looks(&[(100, 300, 0)]);
        unknown[1].node = None;
        assert_eq!(unknown[1].manner_since(&unknown[0]), Manner::Interrupts);
    }

    #[tokio::test(start_paused = true)]
    async fn threads_are_told_when_it_changes() {
        let spans = [
            (1, 1, 398),
            (90, 200, 110),
            (90, 200, 110),
            (45, 355, 0),
            (45, 355, 0),
            (90, 200, 110),
        ];
        let looks = looks(&spans);
        let (next, told) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let look = |_: Option<&Look>| looks[next.fetch_add(1, Relaxed).min(spans.len())].clone();
        let on_each = |take: fn()| {
            take();
            let policy = attributes().unwrap().sched_policy;
            told.lock().unwrap().push((next.load(Relaxed), policy));
        };
        interrupt();
        let _ = timeout(LOOK * 20, adapt_by(look, on_each)).await;
        let [waits, interrupts] = [Manner::Waits, Manner::Interrupts].map(Manner::policy);
        assert_eq!(
            *told.lock().unwrap(),
            [(3, waits), (5, interrupts), (7, waits), (8, interrupts)]
        );
    }
}
