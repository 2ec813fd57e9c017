//! A runtime that behaves, and some that do not.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use tokio::task::JoinHandle;

use super::*;
use crate::{
    net::netns::Netns,
    node::pods::{
        Awaited, Newest, View,
        nri::{Sandboxes, sandboxes::told},
    },
    telemetry::{
        DroppedLines, Metrics,
        status::{NriState, NriStatus},
    },
};

/// The runtime's end, and what the agent's other parts would do.
struct Scene {
    stream: UnixStream,
    decoder: Decoder,
    got: Vec<Message>,
    views: watch::Sender<Option<Newest>>,
    captures: watch::Sender<Captures>,
    told: watch::Receiver<Arc<Sandboxes>>,
    status: watch::Receiver<NriStatus>,
    session: JoinHandle<Result<(), SessionError>>,
}

impl Scene {
    fn begin() -> Self {
        Self::begin_in(None)
    }

    /// Of an agent that is itself in this pod.
    fn begin_in(own_pod: Option<&str>) -> Self {
        let (views, seen) = watch::channel(None);
        let (captures, captured) = watch::channel(Some(Arc::default()));
        let (tell, told) = watch::channel(Arc::default());
        let (status, shown) = watch::channel(NriStatus::default());
        let plugin = Plugin {
            socket: PathBuf::from("/nowhere"),
            own_pod: own_pod.map(str::to_owned),
            told: tell,
            pods: Pods { views: seen },
            captures: captured,
            status,
            metrics: Metrics::new("test", DroppedLines::default()),
        };
        let (stream, ours) = UnixStream::pair().expect("a pair of sockets");
        Self {
            stream,
            decoder: Decoder::default(),
            got: Vec::new(),
            views,
            captures,
            told,
            status: shown,
            session: tokio::spawn(async move { talk(&plugin, ours).await }),
        }
    }

    /// Registered, configured, and told of one pod that runs.
    async fn connected() -> Self {
        let mut scene = Self::begin();
        scene.configure().await;
        for (stream, id, more) in [(3, "a", true), (5, "b", false)] {
            assert_ne!(scene.status.borrow().state, NriState::Connected);
            let answer: SynchronizeResponse = scene.call(stream, "Synchronize", &runs(id, more)).await;
            assert_eq!(answer.more, more);
        }
        assert_eq!(scene.status.borrow().state, NriState::Connected);
        assert_eq!(scene.status.borrow().runtime.as_deref(), Some("containerd 2.1"));
        assert_eq!(scene.ids(), ["a", "b"]);
        scene
    }

    /// Up to where the runtime tells of what runs.
    async fn configure(&mut self) {
        let scene = self;
        let registration = scene.next().await;
        assert_eq!(
            (registration.connection, registration.stream),
            (Connection::Runtime, REGISTRATION)
        );
        let request = Request::decode(registration.payload).expect("a request");
        assert_eq!(
            (request.service.as_str(), request.method.as_str()),
            (RUNTIME, "RegisterPlugin")
        );
        let asked = RegisterPluginRequest::decode(request.payload).expect("a registration");
        assert_eq!((asked.plugin_name.as_str(), asked.plugin_idx.len()), ("weft", 2));
        scene
            .send(
                Connection::Runtime,
                REGISTRATION,
                Kind::Response,
                &Response::default(),
            )
            .await;
        let asked = ConfigureRequest {
            runtime_name: "containerd".to_owned(),
            runtime_version: "2.1".to_owned(),
        };
        let configured: ConfigureResponse = scene.call(1, "Configure", &asked).await;
        assert_eq!(configured.events, 0b111);
    }

    fn ids(&self) -> Vec<String> {
        self.told.borrow().iter().map(|(id, _)| id.clone()).collect()
    }

    async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("it reads");
    }

    async fn send(&mut self, connection: Connection, stream: u32, kind: Kind, payload: &impl prost::Message) {
        let payload = payload.encode_to_vec().into();
        let bytes = encode(&Message {
            connection,
            stream,
            kind,
            payload,
        });
        self.write(&bytes).await;
    }

    async fn ask(&mut self, stream: u32, method: &str, timeout: Duration, payload: &impl prost::Message) {
        let request = Request {
            service: PLUGIN.to_owned(),
            method: method.to_owned(),
            payload: payload.encode_to_vec().into(),
            timeout_nano: timeout.as_nanos() as i64,
        };
        self.send(Connection::Plugin, stream, Kind::Request, &request)
            .await;
    }

    async fn next(&mut self) -> Message {
        let mut bytes = [0; 4096];
        while self.got.is_empty() {
            let count = self.stream.read(&mut bytes).await.expect("it answers");
            assert_ne!(count, 0, "it has gone");
            self.got = self.decoder.push(&bytes[..count]).expect("it speaks NRI");
        }
        self.got.remove(0)
    }

    async fn answer(&mut self, stream: u32) -> Response {
        let answer = self.next().await;
        assert_eq!(
            (answer.connection, answer.stream, answer.kind),
            (Connection::Plugin, stream, Kind::Response)
        );
        Response::decode(answer.payload).expect("a response")
    }

    async fn call<T: prost::Message + Default>(
        &mut self,
        stream: u32,
        method: &str,
        payload: &impl prost::Message,
    ) -> T {
        self.ask(stream, method, Duration::from_secs(2), payload).await;
        let response = self.answer(stream).await;
        assert_eq!(response.status, None);
        T::decode(response.payload).expect("its answer")
    }

    async fn event(&mut self, stream: u32, event: Event, id: &str, timeout: Duration) {
        let event = StateChangeEvent {
            event: event.into(),
            pod: Some(told(id, "in", id, "/nowhere")),
        };
        self.ask(stream, "StateChange", timeout, &event).await;
    }

    fn stands(&self, id: &str, standing: Standing) {
        let sandboxes = BTreeMap::from([(id.to_owned(), standing)]);
        let view = Arc::new(View {
            sandboxes,
            ..View::default()
        });
        let looked = Duration::ZERO;
        self.views.send_replace(Some(Newest { view, looked }));
    }

    async fn end(self) -> Result<(), SessionError> {
        drop(self.stream);
        self.session.await.expect("no panic")
    }
}

/// A part of what runs: one pod.
fn runs(id: &str, more: bool) -> SynchronizeRequest {
    SynchronizeRequest {
        pods: vec![told(id, "in", id, "/nowhere").encode_to_vec().into()],
        more,
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_pod_is_waited_for_until_it_is_captured_or_known_to_be_outside() {
    let mut scene = Scene::connected().await;
    scene.event(7, Event::RunPodSandbox, "outside", SECOND).await;
    scene
        .told
        .wait_for(|told| told.iter().count() == 3)
        .await
        .expect("it is told");
    scene.stands("outside", Standing::Outside);
    assert_eq!(scene.answer(7).await.status, None);

    let netns = Netns::open("/proc/self/ns/net".as_ref()).expect("our own, in place of a pod's");
    let cookie = netns.cookie();
    scene.event(9, Event::RunPodSandbox, "inside", SECOND * 60).await;
    scene.stands(
        "inside",
        Standing::Awaits(Awaited {
            uid: "uid".into(),
            netns: NetnsSource::Held(netns),
        }),
    );
    // Others are served meanwhile, and the pod's turn has not come.
    scene.event(11, Event::StopPodSandbox, "a", SECOND).await;
    scene.answer(11).await;
    scene.event(13, Event::RemovePodSandbox, "b", SECOND).await;
    scene.answer(13).await;
    assert_eq!(scene.ids(), ["inside", "outside"]);
    scene
        .captures
        .send_replace(Some(Arc::new(HashSet::from([cookie + 1]))));
    scene
        .captures
        .send_replace(Some(Arc::new(HashSet::from([cookie]))));
    assert_eq!(scene.answer(9).await.status, None);
    assert!(matches!(scene.end().await, Err(SessionError::Closed)));
}

#[tokio::test]
async fn an_answer_is_never_late() {
    let mut scene = Scene::connected().await;
    scene.stands("x", Standing::Unknown);
    for (stream, timeout, most) in [(7, SECOND / 5, SECOND / 5), (9, SECOND * 60, SECOND)] {
        let since = Instant::now();
        scene.event(stream, Event::RunPodSandbox, "x", timeout).await;
        assert_eq!(
            scene.answer(stream).await.status,
            None,
            "it starts, and stays refused"
        );
        // The second wait is shorter because the first did not end in time.
        assert!(since.elapsed() < most, "{:?}", since.elapsed());
    }
    for (late, timeout_nano, expect) in [
        (0, 0, PATIENCE),
        (0, i64::MIN, PATIENCE),
        (0, 2_000_000_000, PATIENCE),
        (0, 500_000_000, SECOND / 4),
        (1, i64::MAX, SECOND / 2),
        (9, i64::MAX, LEAST),
        (u32::MAX, 0, LEAST),
    ] {
        assert_eq!(patience(late, timeout_nano), expect, "{late} {timeout_nano}");
    }
}

#[tokio::test]
async fn what_is_not_asked_for_is_answered_all_the_same() {
    let mut scene = Scene::connected().await;
    scene.ask(7, "CreateContainer", SECOND, &()).await;
    assert_eq!(
        scene.answer(7).await.status.map(|status| status.code),
        Some(UNIMPLEMENTED)
    );
    scene
        .ask(9, "StateChange", SECOND, &StateChangeEvent::default())
        .await;
    assert_eq!(
        scene.answer(9).await.status.map(|status| status.code),
        Some(INVALID)
    );
    scene.event(11, Event::Unknown, "x", SECOND).await;
    assert_eq!(scene.answer(11).await.status, None);
    let () = scene.call(13, "Shutdown", &()).await;
    // Answers to nothing, and calls of nobody.
    scene.send(Connection::Plugin, 15, Kind::Response, &()).await;
    scene.send(Connection::Runtime, 15, Kind::Request, &()).await;
    scene.send(Connection::Plugin, 15, Kind::Other, &()).await;
    let () = scene.call(17, "Shutdown", &()).await;
}

#[tokio::test]
async fn many_starts_at_once_are_answered_each() {
    let mut scene = Scene::connected().await;
    let most = MOST_WAITING as u32;
    for number in 0..most + 10 {
        scene
            .event(
                100 + number,
                Event::RunPodSandbox,
                &number.to_string(),
                SECOND / 5,
            )
            .await;
    }
    let mut streams = HashSet::new();
    for _ in 0..most + 10 {
        streams.insert(scene.next().await.stream);
    }
    assert_eq!(streams.len(), most as usize + 10);
}

#[tokio::test]
async fn a_runtime_that_refuses_or_speaks_something_else_is_left() {
    let mut scene = Scene::begin();
    scene.next().await;
    let refusal = Response {
        status: Some(Status {
            code: 7,
            message: "no plug-ins here".to_owned(),
        }),
        payload: Bytes::new(),
    };
    scene
        .send(Connection::Runtime, REGISTRATION, Kind::Response, &refusal)
        .await;
    let refused = (&mut scene.session).await.expect("no panic");
    assert!(matches!(refused, Err(SessionError::Refused(status)) if status.message == "no plug-ins here"));

    let mut scene = Scene::begin();
    scene.write(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let ended = (&mut scene.session).await.expect("no panic");
    assert!(matches!(ended, Err(SessionError::Wire(_))), "{ended:?}");

    let mut scene = Scene::connected().await;
    let payload = Bytes::from_static(&[0xff; 40]);
    let bytes = encode(&Message {
        connection: Connection::Plugin,
        stream: 7,
        kind: Kind::Request,
        payload,
    });
    scene.write(&bytes).await;
    let ended = (&mut scene.session).await.expect("no panic");
    assert!(matches!(ended, Err(SessionError::Message(_))), "{ended:?}");
    // What it says of itself goes into the log and the status.
    assert_eq!(shown("é".repeat(4 << 20)), "é".repeat(SHOWN));
    assert_eq!(shown("containerd".to_owned()), "containerd");
}

/// As where nodes are network namespaces of one machine, and share the folder of the socket.
#[tokio::test]
async fn the_runtime_of_another_node_is_left() {
    let mut scene = Scene::begin_in(Some("b"));
    scene.configure().await;
    let _: SynchronizeResponse = scene.call(3, "Synchronize", &runs("a", true)).await;
    let _: SynchronizeResponse = scene.call(5, "Synchronize", &runs("b", false)).await;
    assert_eq!(scene.status.borrow().state, NriState::Connected);

    let mut scene = Scene::begin_in(Some("mine"));
    scene.configure().await;
    scene.ask(3, "Synchronize", SECOND, &runs("a", false)).await;
    let ended = (&mut scene.session).await.expect("no panic");
    let Err(error @ SessionError::Foreign { .. }) = ended else {
        panic!("{ended:?}");
    };
    let said = error.to_string();
    assert!(
        said.contains("containerd 2.1") && said.contains("mine") && said.contains("--nri-socket"),
        "{said}"
    );
    assert_eq!(scene.ids(), Vec::<String>::new(), "its pods are not looked for");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_says_nothing_is_left() {
    let ended = Scene::begin().session.await.expect("no panic");
    assert!(matches!(ended, Err(SessionError::Slow)), "{ended:?}");
}

#[tokio::test]
async fn another_agents_turn_ends_the_session() {
    let scene = Scene::connected().await;
    scene.captures.send_replace(None);
    assert!(scene.session.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn a_runtime_that_tells_without_end_is_heard_to_a_limit() {
    const TOLD: usize = 5000;
    const KEPT: usize = 4096;
    let mut scene = Scene::connected().await;
    // Two bytes each of the message, and nothing that a pod could be known by.
    let nothing = SynchronizeRequest {
        pods: vec![Bytes::new(); 1 << 20],
        more: true,
    };
    let mut stream = 7;
    for _ in 0..3 {
        let SynchronizeResponse { more } = scene.call(stream, "Synchronize", &nothing).await;
        assert!(more);
        stream += 2;
    }
    let long = "x".repeat(8192);
    for part in 0..5 {
        let pods = (0..TOLD / 5).map(|number| {
            let id = format!("{part}-{number}");
            let mut pod = told(&id, "in", &id, "/nowhere");
            pod.labels = [(long.clone(), long.clone())].into();
            pod.encode_to_vec().into()
        });
        // In messages that ttrpc has room for.
        for pods in pods.collect::<Vec<_>>().chunks(200) {
            let some = SynchronizeRequest {
                pods: pods.to_vec(),
                more: true,
            };
            let _: SynchronizeResponse = scene.call(stream, "Synchronize", &some).await;
            stream += 2;
        }
    }
    let _: SynchronizeResponse = scene
        .call(stream, "Synchronize", &SynchronizeRequest::default())
        .await;
    assert_eq!(scene.ids().len(), KEPT);
    // One more is not waited for, and the runtime is not held up.
    let since = Instant::now();
    scene
        .event(stream + 2, Event::RunPodSandbox, "one-more", SECOND)
        .await;
    assert_eq!(scene.answer(stream + 2).await.status, None);
    assert!(since.elapsed() < SECOND / 2, "{:?}", since.elapsed());
    assert_eq!(scene.ids().len(), KEPT);
}
