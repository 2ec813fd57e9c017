//! Two replicas at one API, of which at most one leads at any time, whatever becomes of its answers.

use std::{
    pin::Pin,
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower_service::Service;

use super::*;

/// The one object, as an API has it: with a version that counts up.
type Stored = Arc<Mutex<Option<Value>>>;

const ANSWERS: u8 = 0;
/// Nothing is done, nothing is said.
const SILENT: u8 = 1;
/// It is done, and the answer gets lost.
const DEAF: u8 = 2;

/// One replica's way to it.
#[derive(Clone)]
struct Way {
    stored: Stored,
    how: Arc<AtomicU8>,
}

impl Service<Request<Body>> for Way {
    type Response = Response<Body>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, std::io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let way = self.clone();
        Box::pin(async move {
            let how = way.how.load(SeqCst);
            if how == SILENT {
                std::future::pending::<()>().await;
            }
            let (head, body) = request.into_parts();
            let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
            let (code, answer) = way.answer(&head.method, serde_json::from_slice(&body).ok());
            if how == DEAF && head.method != Method::GET {
                std::future::pending::<()>().await;
            }
            let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
            *response.status_mut() = code;
            Ok(response)
        })
    }
}

impl Way {
    fn answer(&self, method: &Method, body: Option<Value>) -> (StatusCode, Value) {
        let mut stored = self.stored.lock().expect("no panic");
        let failed = |code: StatusCode, reason: &str| {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason,
                "code": code.as_u16(),
            });
            (code, status)
        };
        let version = |it: &Value| it["metadata"]["resourceVersion"].clone();
        match (method.as_str(), &*stored, body) {
            ("GET", Some(lease), _) => (StatusCode::OK, lease.clone()),
            ("GET", None, _) => failed(StatusCode::NOT_FOUND, "NotFound"),
            ("POST", None, Some(mut new)) => {
                new["metadata"]["resourceVersion"] = "1".into();
                *stored = Some(new.clone());
                (StatusCode::CREATED, new)
            }
            ("PUT", Some(there), Some(mut new)) if version(there) == version(&new) => {
                let number: u64 = version(there)
                    .as_str()
                    .and_then(|it| it.parse().ok())
                    .expect("a number");
                new["metadata"]["resourceVersion"] = (number + 1).to_string().into();
                *stored = Some(new.clone());
                (StatusCode::OK, new)
            }
            _ => failed(StatusCode::CONFLICT, "Conflict"),
        }
    }
}

struct Replica {
    how: Arc<AtomicU8>,
    leads: watch::Receiver<bool>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(name: &str, stored: &Stored) -> Self {
        let how = Arc::new(AtomicU8::new(ANSWERS));
        let way = Way {
            stored: Arc::clone(stored),
            how: Arc::clone(&how),
        };
        let lease = Lease::new(&Client::new(way, "weft-system"), "weft-system", name);
        let (sender, leads) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(hold(lease, sender, Arc::default(), shutdown.clone()));
        Self {
            how,
            leads,
            shutdown,
            task,
        }
    }

    /// When it begins, or stops; the time is what passes until then.
    async fn leads(&mut self, wanted: bool) -> Duration {
        let since = Instant::now();
        let changed = timeout(Duration::from_secs(120), self.leads.wait_for(|it| *it == wanted)).await;
        changed.expect("it never does").expect("it runs");
        since.elapsed()
    }
}

fn holder(stored: &Stored) -> Value {
    let stored = stored.lock().expect("no panic");
    stored.as_ref().expect("a Lease")["spec"]["holderIdentity"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_hears_nothing_stops_before_the_next_one_begins() {
    for how in [SILENT, DEAF] {
        let stored = Stored::default();
        let mut a = Replica::start("a", &stored);
        a.leads(true).await;
        let mut b = Replica::start("b", &stored);
        // It was renewed some times, and is in the middle of its pause.
        sleep(DURATION * 2 + Duration::from_millis(1700)).await;
        assert!(*a.leads.borrow() && !*b.leads.borrow(), "the holder keeps it");
        a.how.store(how, SeqCst);
        let stopped = a.leads(false).await;
        assert!(stopped <= GIVE_UP, "{how}: after {stopped:?}");
        assert!(!*b.leads.borrow(), "{how}: two lead");
        let began = b.leads(true).await;
        assert!(!*a.leads.borrow(), "{how}: two lead");
        assert!(
            stopped + began <= GIVE_UP + DURATION + PERIOD * 2,
            "{how}: {began:?}"
        );
        assert_eq!(holder(&stored), "b", "{how}");
        // What comes back is not the holder.
        a.how.store(ANSWERS, SeqCst);
        sleep(DURATION * 2).await;
        assert!(*b.leads.borrow() && !*a.leads.borrow(), "{how}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_lets_go_and_waits_for_nobody() {
    let stored = Stored::default();
    let mut a = Replica::start("a", &stored);
    a.leads(true).await;
    let mut b = Replica::start("b", &stored);
    sleep(Duration::from_millis(100)).await;
    a.shutdown.cancel();
    a.task.await.expect("it ends");
    let took = b.leads(true).await;
    assert!(took <= PERIOD, "it had to wait {took:?}");
    // And an API that says nothing holds nobody up, wherever a turn is.
    b.how.store(SILENT, SeqCst);
    sleep(PERIOD + TURN / 2).await;
    b.shutdown.cancel();
    let ended = timeout(Duration::from_secs(3), b.task).await;
    ended.expect("it hangs").expect("it ends");
    assert!(!*b.leads.borrow());
}

#[tokio::test(start_paused = true)]
async fn of_two_that_begin_at_once_one_leads() {
    let stored = Stored::default();
    let all: Vec<_> = ["a", "b", "c"].map(|name| Replica::start(name, &stored)).into();
    for _ in 0..20 {
        sleep(PERIOD).await;
        let leading = all.iter().filter(|it| *it.leads.borrow()).count();
        assert_eq!(leading, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_taken_from_nobody_who_renews_it() {
    let mut lease = Lease::new(
        &Client::new(
            Way {
                stored: Stored::default(),
                how: Arc::default(),
            },
            "weft-system",
        ),
        "weft-system",
        "a",
    );
    let there = |holder: Option<&str>, version: &str| {
        let lease = json!({"metadata": {"name": NAME, "resourceVersion": version}, "spec": {"holderIdentity": holder}});
        serde_json::from_value::<coordination::Lease>(lease).expect("a Lease")
    };
    let start = Instant::now();
    let mut check = |holder, version, after: Duration, expect| {
        let may = lease.may_take(&there(holder, version), start + after);
        assert_eq!(may, expect, "{holder:?} {version} after {after:?}");
    };
    let (second, late) = (Duration::from_secs(1), DURATION);
    check(Some("a"), "1", Duration::ZERO, true);
    check(None, "2", Duration::ZERO, true);
    check(Some(""), "3", Duration::ZERO, true);
    // Seen for the first time: its holder may have renewed it this very moment.
    check(Some("b"), "4", second, false);
    check(Some("b"), "4", late, false);
    check(Some("b"), "4", second + late, true);
    // Renewed.
    check(Some("b"), "5", second + late, false);
    check(Some("b"), "5", second * 2 + late, false);
    check(Some("c"), "6", late * 2 + second, false);
    // Ours, and lost.
    lease.lost = true;
    let mut check = |version, after: Duration, expect| {
        let may = lease.may_take(&there(Some("a"), version), start + after);
        assert_eq!(may, expect, "{version} after {after:?}");
    };
    check("7", late * 3, false);
    check("7", late * 4, false);
    check("7", late * 5, true);
}
