//! `weft test-app`: the apps that the end-to-end tests run in pods. Those must need no other image than weft's own, on nodes
//! without a network. Not for people, and no part of the mesh: plain TCP, lines of JSON on standard output.

use std::{io, net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How long a connection may take to open, and an answer to come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that `serve` has at a time.
/// From a refusal to the next attempt.
const AGAIN: Duration = Duration::from_millis(50);
const MOST_CONNECTIONS: usize = 1_000;
/// The most bytes that `get` reads.
const LONGEST_ANSWER: u64 = 16 << 20;
/// The most failures that are told one by one.
const MOST_FAILURES: usize = 5;

/// Flags of `weft test-app`.
#[derive(Debug, Args)]
pub struct TestAppArgs {
    /// Which app
    #[command(subcommand)]
    pub app: App,
}

/// The apps.
#[derive(Debug, Subcommand)]
pub enum App {
    /// Send back what comes, and say of each connection whose it seems to be
    Serve {
        /// Where it listens
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
    },
    /// Connect again and again, each time for one line there and back
    Call {
        /// Whom
        target: SocketAddr,
        /// How often; without end where it is 0
        #[arg(long, default_value_t = 1)]
        count: u64,
        /// Milliseconds from one to the next
        #[arg(long, default_value_t = 0)]
        every: u64,
        /// Seconds for which the first connection may be refused, and is tried again: without NRI a pod that starts is, until it is
        /// captured
        #[arg(long, default_value_t = 0)]
        patience: u64,
        /// Stay when it is done, as a pod that must not be started again does
        #[arg(long)]
        stay: bool,
    },
    /// Keep one connection and send a line on it now and then, until ended
    Hold {
        /// Whom
        target: SocketAddr,
        /// Milliseconds from one line to the next
        #[arg(long, default_value_t = 100)]
        every: u64,
        /// Seconds for which the first connection may be refused, and is tried again: without NRI a pod that starts is, until it is
        /// captured
        #[arg(long, default_value_t = 0)]
        patience: u64,
    },
    /// Answer every HTTP request with one word
    Http {
        /// Where it listens
        #[arg(long, default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// The word
        #[arg(long)]
        say: String,
    },
    /// Print what an HTTP server answers
    Get {
        /// Which server
        target: SocketAddr,
        /// What of it
        #[arg(default_value = "/")]
        path: String,
        /// A header more, as `name: value`
        #[arg(long)]
        header: Option<String>,
        /// How often
        #[arg(long, default_value_t = 1)]
        count: u32,
    },
    /// Print the names of what is in a folder, one a line
    List {
        /// Which
        dir: std::path::PathBuf,
    },
}

/// What `call` and `hold` end with, as one line of JSON.
#[derive(Debug, Default, Serialize)]
struct Tally {
    done: u64,
    failed: u64,
    /// The first of them.
    failures: Vec<String>,
}

impl Tally {
    fn count(&mut self, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.done += 1,
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < MOST_FAILURES {
                    self.failures.push(format!("{error} ({:?})", error.kind()));
                }
            }
        }
    }

    fn print(&self) -> ExitCode {
        println!("{}", serde_json::to_string(self).unwrap_or_default());
        if self.failed == 0 && self.done > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs one of the apps until `shutdown`, or until it is done.
///
/// # Errors
/// When it cannot begin.
pub async fn run(args: TestAppArgs, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    match args.app {
        App::Serve { listen } => serve(listen, shutdown).await,
        App::Call {
            target,
            count,
            every,
            patience,
            stay,
        } => {
            let times = [Duration::from_millis(every), Duration::from_secs(patience)];
            let tally = call(target, count, times, &shutdown).await;
            let code = tally.print();
            if stay {
                shutdown.cancelled().await;
            }
            Ok(code)
        }
        App::Hold {
            target,
            every,
            patience,
        } => {
            let times = [Duration::from_millis(every), Duration::from_secs(patience)];
            Ok(hold(target, times, &shutdown).await.print())
        }
        App::Http { listen, say } => http(listen, &say, &shutdown).await,
        App::Get {
            target,
            path,
            header,
            count,
        } => {
            let header = header.map_or(String::new(), |header| format!("{header}\r\n"));
            let mut good = true;
            for _ in 0..count {
                good &= get(target, &path, &header).await?;
            }
            Ok(if good {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        App::List { dir } => {
            let entries = std::fs::read_dir(&dir).with_context(|| format!("look into {}", dir.display()))?;
            for entry in entries {
                println!("{}", entry?.file_name().to_string_lossy());
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn serve(listen: SocketAddr, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    let places = std::sync::Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await?;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return Ok(ExitCode::SUCCESS),
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                println!("{{\"error\":\"{error}\"}}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        println!("{{\"peer\":\"{}\"}}", peer.ip().to_canonical());
        tokio::spawn(async move {
            let _ = echo(stream).await;
            drop(place);
        });
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}

async fn call(
    target: SocketAddr,
    count: u64,
    [every, mut patience]: [Duration; 2],
    shutdown: &CancellationToken,
) -> Tally {
    let mut tally = Tally::default();
    let mut next = Instant::now();
    while (count == 0 || tally.done + tally.failed < count) && !shutdown.is_cancelled() {
        tally.count(patiently(patience, || once(target)).await);
        patience = Duration::ZERO;
        next += every;
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = shutdown.cancelled() => {}
        }
    }
    tally
}

/// Dials, again and again for as long as it is refused and has patience.
async fn patiently<T, F>(patience: Duration, dial: impl Fn() -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    let (begun, mut refused) = (Instant::now(), 0_u32);
    loop {
        let outcome = within(dial()).await;
        let again = matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused);
        if again && begun.elapsed() < patience {
            refused += 1;
            sleep(AGAIN).await;
            continue;
        }
        if refused > 0 {
            let within = begun.elapsed().as_millis();
            println!("{{\"refused\":{refused},\"within\":\"{within}ms\"}}");
        }
        return outcome;
    }
}

async fn once(target: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(target).await?;
    line(&mut stream).await?;
    stream.shutdown().await?;
    match stream.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than was sent came back")),
    }
}

async fn hold(target: SocketAddr, [every, patience]: [Duration; 2], shutdown: &CancellationToken) -> Tally {
    let mut tally = Tally::default();
    let mut stream = match patiently(patience, || TcpStream::connect(target)).await {
        Ok(stream) => stream,
        Err(error) => {
            tally.count(Err(error));
            return tally;
        }
    };
    println!("{{\"open\":true}}");
    while !shutdown.is_cancelled() {
        let outcome = within(line(&mut stream)).await;
        let broken = outcome.is_err();
        tally.count(outcome);
        if broken {
            // Told at once: whoever reads the log does not wait for the end.
            break;
        }
        tokio::select! {
            () = sleep(every) => {}
            () = shutdown.cancelled() => {}
        }
    }
    tally
}

/// One line there and back.
async fn line(stream: &mut TcpStream) -> io::Result<()> {
    const LINE: &[u8] = b"a line, there and back\n";
    stream.write_all(LINE).await?;
    let mut answer = [0; LINE.len()];
    stream.read_exact(&mut answer).await?;
    if answer == LINE {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the answer differs"))
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(PATIENCE, work).await.map_err(io::Error::from)?
}

/// One request for each connection: enough for a test.
async fn http(listen: SocketAddr, say: &str, shutdown: &CancellationToken) -> anyhow::Result<ExitCode> {
    const LONGEST_HEAD: usize = 16 << 10;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("listen on {listen}"))?;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{say}\n",
        say.len() + 1
    );
    let places = std::sync::Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await?;
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return Ok(ExitCode::SUCCESS),
        };
        let Ok((mut stream, _)) = accepted else { continue };
        let answer = answer.clone();
        tokio::spawn(async move {
            let mut head = Vec::new();
            let asked = within(async {
                while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < LONGEST_HEAD {
                    if stream.read_buf(&mut head).await? == 0 {
                        break;
                    }
                }
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await
            });
            let _ = asked.await;
            drop(place);
        });
    }
}

/// Whether the answer is a good one.
async fn get(target: SocketAddr, path: &str, header: &str) -> anyhow::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    let answer = timeout_at(deadline, async {
        let mut stream = TcpStream::connect(target).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {target}\r\n{header}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(LONGEST_ANSWER).read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    });
    let answer = answer.await?.with_context(|| format!("ask {target}"))?;
    // What comes next begins a line, however the answer ends.
    println!("{}", answer.strip_suffix('\n').unwrap_or(&answer));
    let status = answer.split(' ').nth(1).unwrap_or_default();
    Ok(status == "200")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn callers_and_holders_are_answered_and_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let target = listener.local_addr().expect("its address");
        drop(listener);
        let shutdown = CancellationToken::new();
        let at_once = [Duration::ZERO; 2];
        let refused = call(target, 2, at_once, &shutdown).await;
        assert_eq!((refused.done, refused.failed, refused.failures.len()), (0, 2, 2));

        let late = [Duration::ZERO, PATIENCE];
        let waiting = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { call(target, 1, late, &shutdown).await }
        });
        sleep(Duration::from_millis(100)).await;
        let serving = tokio::spawn(serve(target, shutdown.clone()));
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(target).await.is_err() && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
        let waited = waiting.await.expect("no panic");
        assert_eq!((waited.done, waited.failed), (1, 0), "{waited:?}");
        let called = call(target, 20, at_once, &shutdown).await;
        assert_eq!((called.done, called.failed), (20, 0), "{called:?}");
        let ended = CancellationToken::new();
        let holding = tokio::spawn({
            let ended = ended.clone();
            async move { hold(target, [Duration::from_millis(1), Duration::ZERO], &ended).await }
        });
        call(target, 20, at_once, &shutdown).await;
        ended.cancel();
        let held = holding.await.expect("no panic");
        assert_eq!(held.failed, 0, "{held:?}");
        shutdown.cancel();
        serving.await.expect("no panic").expect("it served");
    }
}
