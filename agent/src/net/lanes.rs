//! The two threads of a worker: one for what talks, one for what carries bulk.
//!
//! A message that comes while a bulk stream has the thread waits for it, on every hop; and where there are more threads than
//! cores, a thread that carries bulk has soon had its share of the core and waits for everybody else. So a task that carries
//! bulk goes on on a second thread for as long as it does, and comes back when it has not for a while:
//!
//! ```text
//! Talk --a poll ends with Bulk wanted--> Bulk
//!   ^------ ... with Talk wanted ---------'
//! ```
//!
//! Nothing of the task changes when it moves: between two polls it is taken to the other runtime as it is. Its sockets are
//! still known to the first one's epoll then, which would wake it across threads; each follows by itself when it is used next
//! ([`Berth`]). Called by the roles' workers, which spawn here what may carry bulk; [`super::weight`] says what does.

use std::{
    cell::Cell,
    io,
    os::fd::AsFd as _,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, runtime::Handle};
use tokio_util::sync::CancellationToken;

use super::schedule;

/// The pause after the second thread could not be started.
const AGAIN: Duration = Duration::from_secs(5);

/// One of the two threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lane {
    #[default]
    Talk,
    Bulk,
}

thread_local! {
    /// Which thread this is.
    static HERE: Cell<Lane> = const { Cell::new(Lane::Talk) };
    /// Where the task that is being polled wants to go on.
    static WANTED: Cell<Lane> = const { Cell::new(Lane::Talk) };
}

/// Says, during a poll, where the task belongs. What one poll says last holds after it.
pub(crate) fn want(lane: Lane) {
    WANTED.set(lane);
}

/// The thread that calls.
pub(crate) fn here() -> Lane {
    HERE.get()
}

/// Spawns tasks that go to where they belong. Clones share the threads; the default has one, and nothing moves.
#[derive(Clone, Debug, Default)]
pub struct Lanes(Option<Arc<Threads>>);

#[derive(Debug)]
struct Threads {
    name: String,
    talk: Handle,
    bulk: Mutex<Bulk>,
}

/// The second thread.
#[derive(Debug, Default)]
enum Bulk {
    /// Nothing has carried bulk yet.
    #[default]
    Unborn,
    Runs(Running),
    /// It could not be started, as where no file was free: it is tried again at this time.
    Failed(Instant),
    /// It has been ended.
    Gone,
}

#[derive(Debug)]
struct Running {
    handle: Handle,
    end: CancellationToken,
    thread: JoinHandle<()>,
}

impl Lanes {
    /// For a worker whose own runtime is `talk`. The other thread gets `name`, and is started when it is needed first.
    pub fn new(talk: Handle, name: String) -> Self {
        let bulk = Mutex::default();
        Self(Some(Arc::new(Threads { name, talk, bulk })))
    }

    /// Spawns `task`, at first where messages are carried.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.0 {
            None => drop(tokio::spawn(task)),
            Some(threads) => drop(threads.talk.spawn(Roaming {
                task: Some(Box::pin(task)),
                threads: Arc::clone(threads),
            })),
        }
    }

    /// Runs `work` where messages are carried, between two tasks.
    pub(crate) fn on_talk(&self, work: fn()) {
        if let Some(threads) = &self.0 {
            threads.talk.spawn(async move { work() });
        }
    }

    /// Runs `work` on each of the threads that run, between two tasks.
    pub fn on_each(&self, work: fn()) {
        let Some(threads) = &self.0 else { return };
        self.on_talk(work);
        if let Bulk::Runs(running) = &*threads.bulk() {
            running.handle.spawn(async move { work() });
        }
    }

    /// Ends the second thread and waits for it. What is left there is dropped. Blocks: for a runtime that is about to end.
    pub fn stop(&self) {
        let Some(threads) = &self.0 else { return };
        // Not under the lock: a task there may be about to ask for it.
        let last = std::mem::replace(&mut *threads.bulk(), Bulk::Gone);
        if let Bulk::Runs(running) = last {
            running.end.cancel();
            if running.thread.join().is_err() {
                tracing::error!(thread = threads.name, "a thread for bulk panicked");
            }
        }
    }
}

impl Threads {
    fn runtime(&self, lane: Lane) -> Option<Handle> {
        match lane {
            Lane::Talk => Some(self.talk.clone()),
            Lane::Bulk => self.bulk_runtime(),
        }
    }

    fn bulk_runtime(&self) -> Option<Handle> {
        let mut bulk = self.bulk();
        let wanted = match &*bulk {
            Bulk::Unborn => true,
            Bulk::Failed(again) => *again <= Instant::now(),
            Bulk::Runs(_) | Bulk::Gone => false,
        };
        if wanted {
            *bulk = match Running::start(&self.name) {
                Ok(running) => Bulk::Runs(running),
                Err(error) => {
                    let thread = &self.name;
                    tracing::warn!(%error, thread, "no thread for bulk: messages wait longer beside bulk streams");
                    Bulk::Failed(Instant::now() + AGAIN)
                }
            };
        }
        match &*bulk {
            Bulk::Runs(running) => Some(running.handle.clone()),
            Bulk::Unborn | Bulk::Failed(_) | Bulk::Gone => None,
        }
    }

    fn bulk(&self) -> MutexGuard<'_, Bulk> {
        self.bulk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn start(name: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (handle, end) = (runtime.handle().clone(), CancellationToken::new());
        let ended = end.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            HERE.set(Lane::Bulk);
            // Whoever carries bulk waits, whatever else there is.
            schedule::wait();
            runtime.block_on(ended.cancelled());
        })?;
        Ok(Self { handle, end, thread })
    }
}

/// A task, wherever it is.
struct Roaming {
    /// Boxed, so that it can be taken along between two polls.
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    threads: Arc<Threads>,
}

impl Future for Roaming {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(task) = &mut self.task else {
            return Poll::Ready(());
        };
        let here = here();
        WANTED.set(here);
        if task.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let wanted = WANTED.get();
        if wanted == here {
            return Poll::Pending;
        }
        let Some(runtime) = self.threads.runtime(wanted) else {
            return Poll::Pending;
        };
        // Its first poll there gives everything that it waits for the new waker.
        runtime.spawn(Self {
            task: self.task.take(),
            threads: Arc::clone(&self.threads),
        });
        Poll::Ready(())
    }
}

/// On which thread's epoll a socket is.
#[derive(Debug)]
pub(crate) struct Berth(Lane);

impl Berth {
    /// For a socket that was made, or is used for the first time, on this thread.
    pub(crate) fn new() -> Self {
        Self(here())
    }

    /// Whether the task has moved and its socket has not.
    pub(crate) fn is_left(&self) -> bool {
        self.0 != here()
    }

    /// Takes the socket along, where the task has moved. Where that cannot be (no file is free) it stays, and wakes the task
    /// across threads.
    pub(crate) fn follow(&mut self, socket: &mut TcpStream) {
        if self.is_left() {
            self.0 = here();
            match registered_here(socket) {
                Ok(moved) => *socket = moved,
                Err(error) => tracing::debug!(%error, "a socket stays on the thread that it came from"),
            }
        }
    }
}

/// The same socket by another descriptor, which the epoll of this thread watches. Dropping the first one takes it off the other
/// epoll.
fn registered_here(socket: &TcpStream) -> io::Result<TcpStream> {
    let descriptor = socket.as_fd().try_clone_to_owned()?;
    TcpStream::from_std(descriptor.into())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        sync::oneshot,
        time::{sleep, timeout},
    };

    use super::*;

    /// One poll that wants a lane, and one that sees where it has led.
    async fn go(lane: Lane) -> Lane {
        let mut asked = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut asked, true) {
                return Poll::Ready(here());
            }
            want(lane);
            // For one that stays.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    fn lanes() -> Lanes {
        Lanes::new(Handle::current(), "weft-bulk-test".to_owned())
    }

    /// Runs `task` among `lanes`.
    async fn done<T: Send + 'static>(lanes: &Lanes, task: impl Future<Output = T> + Send + 'static) -> T {
        let (tell, told) = oneshot::channel();
        lanes.spawn(async move { drop(tell.send(task.await)) });
        timeout(Duration::from_secs(5), told).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_task_goes_where_it_wants_to_and_comes_back() {
        let lanes = lanes();
        let trip = done(&lanes, async {
            let there = (go(Lane::Bulk).await, thread::current().name().map(str::to_owned));
            sleep(Duration::from_millis(1)).await;
            (there, go(Lane::Talk).await, go(Lane::Talk).await)
        });
        let there = (Lane::Bulk, Some("weft-bulk-test".to_owned()));
        assert_eq!(trip.await, (there, Lane::Talk, Lane::Talk));
        lanes.stop();
    }

    #[tokio::test]
    async fn without_a_second_thread_nothing_moves() {
        assert_eq!(done(&Lanes::default(), go(Lane::Bulk)).await, Lane::Talk);
        let lanes = lanes();
        lanes.stop();
        assert_eq!(done(&lanes, go(Lane::Bulk)).await, Lane::Talk);
    }

    #[tokio::test]
    async fn what_is_left_when_the_thread_ends_is_dropped() {
        let lanes = lanes();
        let (held, dropped) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        lanes.spawn(async move {
            let _held = held;
            let _ = tell.send(go(Lane::Bulk).await);
            std::future::pending::<()>().await;
        });
        assert_eq!(told.await, Ok(Lane::Bulk));
        lanes.stop();
        assert!(timeout(Duration::from_secs(5), dropped).await.unwrap().is_err());
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
        (dialled.unwrap(), accepted.unwrap().0)
    }

    /// Sends what comes back, after each piece on the other thread, and while it waits as well.
    async fn echo_by_turns(mut near: TcpStream, pieces: usize) {
        let mut berth = Berth::new();
        for turn in 0..pieces {
            berth.follow(&mut near);
            let mut piece = [0; 64];
            let mut waits = turn % 2 == 0;
            let mut read = std::pin::pin!(near.read_exact(&mut piece));
            let other = if here() == Lane::Talk {
                Lane::Bulk
            } else {
                Lane::Talk
            };
            // It moves while it is waiting for a socket that is still known to the other epoll.
            poll_fn(|cx| {
                let read = read.as_mut().poll(cx);
                if read.is_pending() && std::mem::take(&mut waits) {
                    want(other);
                }
                read
            })
            .await
            .unwrap();
            near.write_all(&piece).await.unwrap();
            go(if turn % 3 == 0 { Lane::Bulk } else { Lane::Talk }).await;
        }
    }

    #[tokio::test]
    async fn many_tasks_that_flap_lose_nothing_and_no_wake_up() {
        const TASKS: usize = 100;
        const PIECES: usize = 60;
        let lanes = lanes();
        let (ended, mut ends) = tokio::sync::mpsc::channel::<()>(1);
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..TASKS {
            let (mut far, near) = pair().await;
            let ended = ended.clone();
            lanes.spawn(async move {
                echo_by_turns(near, PIECES).await;
                drop(ended);
            });
            clients.spawn(async move {
                for turn in 0..PIECES {
                    let sent = [(number + turn) as u8; 64];
                    far.write_all(&sent).await.unwrap();
                    let mut got = [0; 64];
                    far.read_exact(&mut got).await.unwrap();
                    assert_eq!(sent, got);
                }
            });
        }
        drop(ended);
        let all = async {
            while let Some(client) = clients.join_next().await {
                client.unwrap();
            }
            assert_eq!(ends.recv().await, None, "every task has ended");
        };
        timeout(Duration::from_secs(60), all)
            .await
            .expect("somebody waits for ever");
        lanes.stop();
    }

    #[tokio::test]
    async fn a_socket_follows_its_task_and_loses_no_byte() {
        let (mut far, mut near) = pair().await;
        let lanes = lanes();
        let echo = done(&lanes, async move {
            let mut berth = Berth::new();
            for lane in [Lane::Talk, Lane::Bulk, Lane::Talk, Lane::Bulk] {
                let there = go(lane).await;
                let moves = berth.is_left();
                berth.follow(&mut near);
                let mut byte = [0];
                near.read_exact(&mut byte).await.unwrap();
                near.write_all(&byte).await.unwrap();
                assert!(there == lane && moves == (byte != *b"a"));
            }
        });
        let talk = async {
            for byte in *b"abcd" {
                far.write_all(&[byte]).await.unwrap();
                assert_eq!(far.read_u8().await.unwrap(), byte);
            }
        };
        tokio::join!(echo, talk);
        lanes.stop();
    }
}
