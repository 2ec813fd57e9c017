//! Queries that came over TCP: an app's connection to port 53 of a server. Each query that is passed on has a connection
//! of its own to that server, through the mesh where the server is in it.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{
    super::{
        connections::Carried,
        dial::dial,
        outbound::{Upstream, reach},
        pod::Pod,
        worker::Worker,
    },
    Asking, Limits, Next, next,
};
use crate::{
    dns::{Frames, Protocol, UPSTREAM_TIMEOUT, framed},
    mesh::{Direction, FailureKind, Flow, Outcome, Party, Refusal},
    net::{copy::Count as _, socket::abort_on_close},
};

/// How long a connection may be without a query (RFC 7766 6.2.3).
const IDLE: Duration = Duration::from_secs(30);
/// How long a server may take to accept a connection: less than it may take for all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long it may take to end one.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves one connection, from accept to close. It is reset until it has come to its end.
pub(in super::super) async fn serve(
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    limits: Limits,
    app: TcpStream,
    ends: (SocketAddr, SocketAddr),
) {
    abort_on_close(&app);
    let Some(_place) = limits.stream() else { return };
    let mut serving = Serving {
        worker,
        pod,
        limits,
        app,
        client: ends.0,
        server: ends.1,
    };
    match serving.run().await {
        // From here on a drop is an ordinary close.
        Ok(()) => drop(SockRef::from(&serving.app).set_linger(None)),
        Err(error) => tracing::debug!(%error, client = %serving.client, "an app's DNS connection broke"),
    }
}

struct Serving {
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    limits: Limits,
    app: TcpStream,
    client: SocketAddr,
    server: SocketAddr,
}

impl Serving {
    /// One query after the other, until the app ends the connection or has nothing to ask for too long.
    async fn run(&mut self) -> io::Result<()> {
        let mut frames = Frames::default();
        self.worker.be_told_of(&self.pod).await;
        loop {
            let Some(query) = frames.take() else {
                let (drain, between) = (&self.worker.drain.begins, !frames.is_amid());
                let read = tokio::select! {
                    read = timeout(IDLE, self.app.read_buf(frames.room())) => read,
                    () = drain.cancelled(), if between => return Ok(()),
                };
                // The end of the stream, and of our patience, is a clean one between two queries only.
                match read.unwrap_or(Ok(0))? {
                    0 if frames.is_amid() => return Err(io::ErrorKind::UnexpectedEof.into()),
                    0 => return Ok(()),
                    _ => continue,
                }
            };
            match next(&self.worker, &self.pod, &self.limits, &query, Protocol::Tcp) {
                Next::Ignore => return Err(io::ErrorKind::InvalidData.into()),
                Next::Reply(response) => self.reply(&response).await?,
                Next::Ask(asking) => self.ask(asking).await?,
            }
        }
    }

    async fn reply(&mut self, response: &[u8]) -> io::Result<()> {
        let framed = framed(response).ok_or(io::ErrorKind::InvalidData)?;
        match timeout(IDLE, self.app.write_all(&framed)).await {
            Ok(written) => written,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Asks the server and passes on what it says.
    async fn ask(&mut self, asking: Box<Asking>) -> io::Result<()> {
        let mut conversation = None;
        let ends = (self.client, self.server);
        let exchange = async {
            let begun = Conversation::begin(&self.worker, &self.pod, ends).await?;
            conversation.insert(begun).exchange(&asking).await
        };
        let response = asking.response(&self.worker, self.server, exchange).await;
        let replied = self.reply(&response).await;
        if let Some(mut conversation) = conversation {
            if asking.is_transfer && replied.is_ok() {
                self.pass_on(&asking, &mut conversation).await;
            }
            tokio::spawn(conversation.end(asking));
        }
        replied
    }

    /// The rest of a transfer: what the server says until it says no more.
    async fn pass_on(&mut self, asking: &Asking, conversation: &mut Conversation) {
        while let Ok(Ok(message)) = timeout(UPSTREAM_TIMEOUT, conversation.receive()).await {
            let Some(response) = asking.forward.accept(message) else {
                return;
            };
            if self.reply(&response).await.is_err() {
                return;
            }
        }
    }
}

/// A connection to the server, recorded as any other outbound connection.
struct Conversation {
    upstream: Upstream,
    carried: Carried,
    frames: Frames,
    outcome: Outcome,
}

impl Conversation {
    async fn begin(
        worker: &Arc<Worker>,
        pod: &Arc<Pod>,
        (client, server): (SocketAddr, SocketAddr),
    ) -> Result<Self, String> {
        let since = Instant::now();
        let source = Party {
            addr: Some(client),
            ..Party::default()
        };
        let mut flow = Box::new(Flow::new(Direction::Outbound, source, Party::default()));
        let reached = timeout(CONNECT_TIMEOUT, reach_server(worker, pod, server, &mut flow)).await;
        let late = |_| Err(unreached(server, "no answer in time"));
        match reached.unwrap_or_else(late) {
            Ok(upstream) => Ok(Self {
                upstream,
                carried: Carried::open(&worker.shared, flow, since, None, None),
                frames: Frames::default(),
                outcome: Outcome::Failed(FailureKind::Broken, "no response in time".to_owned()),
            }),
            Err(outcome) => {
                flow.outcome = outcome;
                worker.record_refused(flow, since);
                Err("the server cannot be reached".to_owned())
            }
        }
    }

    async fn exchange(&mut self, asking: &Asking) -> Result<Vec<u8>, String> {
        let outcome = self.ask(asking).await;
        self.outcome = match &outcome {
            Ok(_) => Outcome::Complete,
            Err(error) => Outcome::Failed(FailureKind::Broken, error.clone()),
        };
        outcome
    }

    async fn ask(&mut self, asking: &Asking) -> Result<Vec<u8>, String> {
        let query = framed(asking.forward.bytes()).ok_or("the query is too large")?;
        self.carried.counts().up(query.len() as u64);
        self.upstream.write_all(query.into()).await?;
        let response = self.receive().await?;
        let stranger = || "the server answered another question".to_owned();
        asking.forward.accept(response).ok_or_else(stranger)
    }

    async fn receive(&mut self) -> Result<Vec<u8>, String> {
        loop {
            if let Some(message) = self.frames.take() {
                return Ok(message);
            }
            match self.upstream.read(self.frames.room()).await? {
                0 => return Err("the server ended the connection".to_owned()),
                read => self.carried.counts().down(read as u64),
            }
        }
    }

    /// Ends both ways, and the record. The query keeps its place until then.
    async fn end(mut self, _asking: Box<Asking>) {
        // A server that does not end its side is left.
        let _ = timeout(CLOSE_TIMEOUT, self.upstream.finish()).await;
        self.carried.close(self.outcome);
    }
}

/// Through the mesh, where the server is in it. One that the mesh does not know is asked all the same, as over UDP.
async fn reach_server(
    worker: &Arc<Worker>,
    pod: &Arc<Pod>,
    server: SocketAddr,
    flow: &mut Flow,
) -> Result<Upstream, Outcome> {
    let source = flow.source.addr.map_or(server.ip(), |client| client.ip());
    match reach(
        worker,
        pod,
        (server, worker.draws.next(server), &Bytes::new()),
        flow,
    )
    .await
    {
        Err(Outcome::Refused(Refusal::OverLimit(limit))) => Err(Refusal::OverLimit(limit).into()),
        Err(Outcome::Refused(_)) => {
            let place = pod.places.socket()?;
            dial(&worker.sockets, pod, source, server)
                .await
                .map(|tcp| Upstream::Tcp(tcp, place))
                .map_err(|error| unreached(server, &error.to_string()))
        }
        reached => reached,
    }
}

fn unreached(server: SocketAddr, why: &str) -> Outcome {
    Outcome::Failed(FailureKind::Connect, format!("{server} cannot be reached: {why}"))
}

impl Upstream {
    async fn write_all(&mut self, bytes: Bytes) -> Result<(), String> {
        match self {
            Self::Tcp(stream, _) => stream.write_all(&bytes).await.map_err(|error| error.to_string()),
            Self::Tunnel(stream) => stream.write_all(bytes).await.map_err(|error| error.to_string()),
        }
    }

    /// How many bytes came; 0 at the end.
    async fn read(&mut self, room: &mut BytesMut) -> Result<usize, String> {
        match self {
            Self::Tcp(stream, _) => stream.read_buf(room).await.map_err(|error| error.to_string()),
            Self::Tunnel(stream) => {
                let read = stream.read().await.map_err(|error| error.to_string())?;
                let bytes = read.unwrap_or_default();
                room.extend_from_slice(&bytes);
                Ok(bytes.len())
            }
        }
    }

    /// Ends our side and waits for the other's end.
    async fn finish(&mut self) -> Result<(), String> {
        match self {
            Self::Tcp(stream, _) => stream.shutdown().await.map_err(|error| error.to_string())?,
            Self::Tunnel(stream) => stream.shutdown().map_err(|error| error.to_string())?,
        }
        let mut rest = BytesMut::new();
        while self.read(&mut rest).await? > 0 {
            rest.clear();
        }
        Ok(())
    }
}
