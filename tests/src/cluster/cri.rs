//! The client of a container runtime: gRPC over its Unix socket (gRPC over HTTP/2, "Requests" and "Responses"), one call at a
//! time of what a kubelet asks.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::{net::UnixStream, sync::Mutex};

use super::messages::{
    ContainerStatus, ContainerStatusAnswer, CreateContainer, Empty, Id, ImageSpec, ImageStatus,
    ImageStatusAnswer, RunSandbox, SandboxStatusAnswer, StopContainer, VersionAnswer,
};

/// A runtime by its socket.
pub(super) struct Runtime {
    socket: PathBuf,
    open: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Runtime {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            open: Mutex::new(None),
        }
    }

    pub(super) async fn version(&self) -> Result<String> {
        let answer: VersionAnswer = self.call("RuntimeService/Version", &Empty {}).await?;
        Ok(answer.runtime_version)
    }

    /// Whether it has an image.
    pub(super) async fn has(&self, image: &str) -> Result<bool> {
        let asked = ImageStatus {
            image: Some(ImageSpec { image: image.into() }),
        };
        let answer: ImageStatusAnswer = self.call("ImageService/ImageStatus", &asked).await?;
        Ok(answer.image.is_some())
    }

    pub(super) async fn run_sandbox(&self, request: &RunSandbox) -> Result<String> {
        let made: Id = self.call("RuntimeService/RunPodSandbox", request).await?;
        Ok(made.id)
    }

    /// The address of a sandbox; "" in the node's own network.
    pub(super) async fn address(&self, sandbox: &str) -> Result<String> {
        let answer: SandboxStatusAnswer = self.call("RuntimeService/PodSandboxStatus", &id(sandbox)).await?;
        let network = answer.status.and_then(|status| status.network);
        Ok(network.map(|network| network.ip).unwrap_or_default())
    }

    /// Ends a sandbox with all that is in it, and forgets it.
    pub(super) async fn remove_sandbox(&self, sandbox: &str) -> Result<()> {
        let _: Empty = self.call("RuntimeService/StopPodSandbox", &id(sandbox)).await?;
        let _: Empty = self.call("RuntimeService/RemovePodSandbox", &id(sandbox)).await?;
        Ok(())
    }

    /// Makes and starts a container.
    pub(super) async fn start(&self, request: &CreateContainer) -> Result<String> {
        let made: Id = self.call("RuntimeService/CreateContainer", request).await?;
        let _: Empty = self.call("RuntimeService/StartContainer", &id(&made.id)).await?;
        Ok(made.id)
    }

    pub(super) async fn status(&self, container: &str) -> Result<ContainerStatus> {
        let answer: ContainerStatusAnswer = self
            .call("RuntimeService/ContainerStatus", &id(container))
            .await?;
        answer.status.context("the runtime gives no status")
    }

    /// SIGTERM, and SIGKILL after as many seconds.
    pub(super) async fn stop(&self, container: &str, seconds: i64) -> Result<()> {
        let request = StopContainer {
            id: container.into(),
            timeout: seconds,
        };
        let _: Empty = self.call("RuntimeService/StopContainer", &request).await?;
        Ok(())
    }

    async fn call<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A> {
        let answer = self.exchange(method, message).await;
        if answer.is_err() {
            // The next call dials anew.
            *self.open.lock().await = None;
        }
        answer.with_context(|| format!("{method} at {}", self.socket.display()))
    }

    async fn exchange<A: Message + Default>(&self, method: &str, message: &impl Message) -> Result<A> {
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.encoded_len())?);
        message.encode(&mut body)?;
        let request = http::Request::post(format!("http://localhost/runtime.v1.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(body.freeze()))?;
        let mut sender = self.sender().await?;
        let answer = sender.send_request(request).await?;
        let failed = grpc_failure(answer.headers());
        let collected = answer.into_body().collect().await?;
        let failed = failed.or_else(|| collected.trailers().and_then(grpc_failure));
        if let Some(failed) = failed {
            bail!("{failed}");
        }
        let bytes = collected.to_bytes();
        ensure!(bytes.len() >= 5, "an answer without a message");
        Ok(A::decode(bytes.slice(5..))?)
    }

    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = UnixStream::connect(&self.socket).await?;
        let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        *open = Some(sender.clone());
        Ok(sender)
    }
}

fn id(id: &str) -> Id {
    Id { id: id.into() }
}

/// What a `grpc-status` other than 0 says.
fn grpc_failure(headers: &http::HeaderMap) -> Option<String> {
    let status = headers.get("grpc-status")?.to_str().ok()?;
    if status == "0" {
        return None;
    }
    let said = headers
        .get("grpc-message")
        .and_then(|said| said.to_str().ok())
        .unwrap_or_default();
    Some(format!(
        "{} (gRPC status {status})",
        said.replace("%20", " ").replace("%22", "\"")
    ))
}
