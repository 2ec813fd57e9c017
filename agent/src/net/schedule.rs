//! When the threads that carry traffic get their turns. A message passes four threads of two agents, and where more wants to run
//! than there are cores, each of them waits for whoever runs there.
//!
//! Such a thread asks for short slices: no more time than by default, but sooner (EEVDF, Linux 6.12; older kernels ignore it). And
//! it says what its waking up does to whoever runs:
//!
//! - [`Manner::Waits`] (SCHED_BATCH), as a rule: whoever runs, runs on until it sleeps. That is mostly the one that has just sent it
//!   something and is about to wait itself, or another worker: to interrupt it costs two switches more, and gains nothing.
//! - [`Manner::Interrupts`] (SCHED_OTHER), while others have the node to themselves: apps that compute do not sleep, and it would
//!   wait a slice of theirs, some 3 ms, on one hop in a hundred.
//!
//! Which it is, [`adapt`] sees once a second by how busy the node is, and with what.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::OnceLock, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// In nanoseconds: the shortest that the kernel takes.
const SLICE: u64 = 100_000;
/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// Looks with no crowd after which there is none.
const CALM: u32 = 5;
/// One part in so many of the node's time: where less is idle, it is crowded.
const IDLE: u64 = 20;
/// One part in so many of the time that is not idle: where we have less of it, others do not sleep. What carries traffic, and it
/// alone, has a fifth and more of it in the agent.
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
pub(crate) fn wait() {
    take(Manner::Waits);
}

fn interrupt() {
    take(Manner::Interrupts);
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
    adapt_to(|| Usage::read(&File::open("/proc/stat")?), on_each).await;
}

async fn adapt_to(look: impl Fn() -> io::Result<Usage>, on_each: impl Fn(fn())) {
    let (mut before, mut choice) = (look(), Choice::default());
    loop {
        sleep(LOOK).await;
        let now = look();
        let crowded = match (&before, &now) {
            (Ok(before), Ok(now)) => now.is_crowded_since(before),
            // Where nobody knows, it must not wait.
            (Err(_), _) | (_, Err(_)) => true,
        };
        match choice.next(crowded) {
            Some(Manner::Waits) => on_each(wait),
            Some(Manner::Interrupts) => on_each(interrupt),
            None => {}
        }
        before = now;
    }
}

/// Time of all cores, in ns, since the start of the node; `own` since that of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    idle: u64,
    busy: u64,
    own: u64,
}

impl Usage {
    fn read(stat: &File) -> io::Result<Self> {
        // The first line is the sum, and of at most ten numbers.
        let mut text = [0; 256];
        let length = stat.read_at(&mut text, 0)?;
        let text = str::from_utf8(text.get(..length).unwrap_or_default()).unwrap_or_default();
        let (idle, busy) = of_all_cores(text).ok_or(io::ErrorKind::InvalidData)?;
        let own = clock_gettime(ClockId::ProcessCPUTime);
        let own = own.tv_sec.cast_unsigned() * 1_000_000_000 + own.tv_nsec.cast_unsigned();
        Ok(Self { idle, busy, own })
    }

    fn is_crowded_since(&self, before: &Self) -> bool {
        let idle = self.idle.saturating_sub(before.idle);
        let busy = self.busy.saturating_sub(before.busy);
        let own = self.own.saturating_sub(before.own);
        idle * IDLE < idle + busy && own * OWN < busy
    }
}

/// What is idle and what is not, in ns, of /proc/stat: "cpu user nice system idle iowait irq softirq ..." in hundredths of a second
/// (proc(5)). What a hypervisor has taken is neither.
fn of_all_cores(stat: &str) -> Option<(u64, u64)> {
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
    Some((scaled(idle.saturating_add(iowait)), scaled(busy)))
}

/// The manner, by what was seen lately.
#[derive(Debug, Default)]
struct Choice {
    interrupts: bool,
    calm: u32,
}

impl Choice {
    /// Which it is to be now, where that changes.
    fn next(&mut self, crowded: bool) -> Option<Manner> {
        self.calm = if crowded { 0 } else { self.calm.saturating_add(1) };
        let interrupts = crowded || self.interrupts && self.calm < CALM;
        if interrupts == std::mem::replace(&mut self.interrupts, interrupts) {
            return None;
        }
        Some(if interrupts {
            Manner::Interrupts
        } else {
            Manner::Waits
        })
    }
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
        assert_eq!(of_all_cores(stat), Some((1_100_000_000, 310_000_000)));
        for bad in [
            "",
            "cpu",
            "cpu  1 2 3",
            "cpu  1 2 x 4 5 6 7",
            "cpu0 1 2 3 4 5 6 7",
        ] {
            assert_eq!(of_all_cores(bad), None, "{bad}");
        }
        let now = Usage::read(&File::open("/proc/stat").unwrap()).unwrap();
        assert!(now.busy > now.own && now.own > 0, "{now:?}");
    }

    #[test]
    fn a_node_is_crowded_where_others_leave_nothing() {
        let second = |idle, others, own| {
            let before = Usage {
                idle: 7,
                busy: 8,
                own: 9,
            };
            let now = Usage {
                idle: before.idle + idle,
                busy: before.busy + others + own,
                own: before.own + own,
            };
            now.is_crowded_since(&before)
        };
        assert!(second(0, 1990, 10), "two that compute");
        assert!(!second(1000, 990, 10), "one, and a core for the others");
        assert!(!second(0, 1600, 400), "busy with traffic");
        assert!(!second(1990, 9, 1), "quiet");
        assert!(!second(0, 0, 0));
    }

    #[test]
    fn a_crowd_is_believed_at_once_and_its_end_later() {
        let mut choice = Choice::default();
        assert_eq!(
            [false, true, true].map(|it| choice.next(it)),
            [None, Some(Manner::Interrupts), None]
        );
        for _ in 1..CALM {
            assert_eq!(choice.next(false), None);
        }
        assert_eq!(choice.next(true), None);
        for _ in 1..CALM {
            assert_eq!(choice.next(false), None);
        }
        assert_eq!(choice.next(false), Some(Manner::Waits));
        assert_eq!(choice.next(false), None);
    }

    #[tokio::test(start_paused = true)]
    async fn threads_are_told() {
        // One second that is crowded, the third, and one of which nobody knows.
        let looks = AtomicUsize::new(0);
        let look = || match looks.fetch_add(1, Relaxed) {
            9 => Err(io::ErrorKind::NotFound.into()),
            seconds => {
                let crowded = if seconds < 2 { 0 } else { 2000 };
                Ok(Usage {
                    idle: seconds as u64 * 2000 - crowded,
                    busy: crowded,
                    own: 0,
                })
            }
        };
        let told = Mutex::new(Vec::new());
        let on_each = |take: fn()| {
            take();
            told.lock()
                .unwrap()
                .push((looks.load(Relaxed), attributes().unwrap().sched_policy));
        };
        wait();
        let _ = timeout(LOOK * 30, adapt_to(look, on_each)).await;
        let [waits, interrupts] = [Manner::Waits, Manner::Interrupts].map(Manner::policy);
        assert_eq!(
            *told.lock().unwrap(),
            [(3, interrupts), (8, waits), (10, interrupts), (16, waits)]
        );
    }
}
