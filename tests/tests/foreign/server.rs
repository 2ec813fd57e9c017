//! The dialled side of a tunnel, made from the public libraries alone, which behaves as it is told.

use std::{
    future::pending,
    net::TcpListener as StdListener,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{Request, Response, StatusCode, request::Parts};
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    sync::mpsc,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// What it does with whoever comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// Says nothing, from the first byte on.
    StallHandshake,
    /// Reads what comes inside TLS, answers nothing, and closes.
    Gather,
    /// Answers 200 and echoes.
    Echo,
    /// The same, and says GOAWAY right after.
    EchoAndGoAway,
    /// Answers this status.
    Status(u16),
    /// Takes the request and never answers.
    Silence,
    /// Turns the first request away unseen, and echoes for the others.
    RefuseFirst,
    /// Echoes once, and resets the stream.
    Reset,
    /// Echoes once, and dies without a word.
    Die,
}

/// What it was shown.
#[derive(Debug, Default)]
pub(crate) struct Met {
    /// TCP connections.
    pub(crate) connections: usize,
    /// Why handshakes failed.
    pub(crate) failed: Vec<String>,
    /// The certificates of those whose handshake was done.
    pub(crate) clients: Vec<Vec<CertificateDer<'static>>>,
    /// Whether any of them named a server (SNI).
    pub(crate) named: bool,
    /// What came inside TLS, where it was only gathered.
    pub(crate) plaintext: Vec<u8>,
    /// The requests.
    pub(crate) requests: Vec<Parts>,
}

/// The server. It ends with its runtime.
#[derive(Clone)]
pub(crate) struct Impostor(Arc<Inner>);

struct Inner {
    met: Mutex<Met>,
    presents: Mutex<(Arc<ServerConfig>, Conduct)>,
}

impl Impostor {
    pub(crate) fn start(
        runtime: &Runtime,
        listener: StdListener,
        config: Arc<ServerConfig>,
        conduct: Conduct,
    ) -> Result<Self> {
        let impostor = Self(Arc::new(Inner {
            met: Mutex::default(),
            presents: Mutex::new((config, conduct)),
        }));
        let _in_runtime = runtime.enter();
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        runtime.spawn(impostor.clone().accept(listener));
        Ok(impostor)
    }

    /// Another certificate, for those who come from now on; what was met before is forgotten.
    pub(crate) fn present(&self, config: Arc<ServerConfig>, conduct: Conduct) {
        *lock(&self.0.presents) = (config, conduct);
        *self.met() = Met::default();
    }

    /// Another conduct, for those who come from now on, on old tunnels too.
    pub(crate) fn behave(&self, conduct: Conduct) {
        lock(&self.0.presents).1 = conduct;
    }

    pub(crate) fn met(&self) -> MutexGuard<'_, Met> {
        lock(&self.0.met)
    }

    async fn accept(self, listener: TcpListener) {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(self.clone().serve(tcp));
        }
    }

    async fn serve(self, tcp: TcpStream) {
        self.met().connections += 1;
        let (config, conduct) = lock(&self.0.presents).clone();
        if conduct == Conduct::StallHandshake {
            return pending().await;
        }
        match TlsAcceptor::from(config).accept(tcp).await {
            Err(err) => self.met().failed.push(err.to_string()),
            Ok(stream) => {
                let session = stream.get_ref().1;
                let certs = session.peer_certificates().unwrap_or_default().to_vec();
                self.met().clients.push(certs);
                self.met().named |= session.server_name().is_some();
                self.secured(stream, conduct).await;
            }
        }
    }

    async fn secured(&self, mut stream: TlsStream<TcpStream>, conduct: Conduct) {
        if conduct == Conduct::Gather {
            let mut bytes = [0; 4096];
            if let Ok(size) = stream.read(&mut bytes).await {
                self.met().plaintext.extend(&bytes[..size]);
            }
            return;
        }
        let Ok(mut connection) = h2::server::handshake(stream).await else {
            return;
        };
        let (dies, mut death) = mpsc::channel::<()>(1);
        loop {
            let request = tokio::select! {
                request = connection.accept() => request,
                _ = death.recv() => return,
            };
            let Some(Ok((request, respond))) = request else {
                return;
            };
            let conduct = lock(&self.0.presents).1;
            tokio::spawn(self.clone().answer(request, respond, conduct, dies.clone()));
            if conduct == Conduct::EchoAndGoAway {
                connection.graceful_shutdown();
            }
        }
    }

    async fn answer(
        self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        conduct: Conduct,
        dies: mpsc::Sender<()>,
    ) -> Result<()> {
        let (head, recv) = request.into_parts();
        let first = {
            let mut met = self.met();
            met.requests.push(head);
            met.requests.len() == 1
        };
        match conduct {
            Conduct::Silence => pending().await,
            Conduct::RefuseFirst if first => respond.send_reset(Reason::REFUSED_STREAM),
            Conduct::Status(status) => {
                let mut answer = Response::new(());
                *answer.status_mut() = StatusCode::from_u16(status)?;
                respond.send_response(answer, true)?;
            }
            _ => {
                let mut send = respond.send_response(Response::new(()), false)?;
                let ended = echo(recv, &mut send, matches!(conduct, Conduct::Reset | Conduct::Die)).await;
                match conduct {
                    Conduct::Reset => send.send_reset(Reason::INTERNAL_ERROR),
                    Conduct::Die => dies.send(()).await?,
                    _ => ended?,
                }
            }
        }
        Ok(())
    }
}

/// Sends back what comes, to the end or until the other side has something of it and goes on.
async fn echo(mut recv: RecvStream, send: &mut SendStream<Bytes>, once: bool) -> Result<()> {
    let mut chunks = 0;
    while let Some(chunk) = recv.data().await {
        let chunk = chunk?;
        chunks += 1;
        if once && chunks == 2 {
            return Ok(());
        }
        recv.flow_control().release_capacity(chunk.len())?;
        send.send_data(chunk, false)?;
    }
    ensure!(!once, "it ended before it could be broken");
    Ok(send.send_data(Bytes::new(), true)?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
