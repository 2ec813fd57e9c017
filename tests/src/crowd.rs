//! Thousands of connections: a process holds no more sockets than the limit of open files allows, so each end of a crowd
//! is a process of its own (`weft-crowd`) in a pod.
//!
//! It says a line when it is done with something and waits for a line to go on; its end is the end of its connections.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, RawFd},
    process::{ChildStdin, ChildStdout, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::event::epoll;

use crate::{host::Host, machine, process::Process};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One end of a crowd, in a pod.
#[derive(Debug)]
pub struct Crowd {
    process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Crowd {
    /// A server that sends back what comes, on any number of connections.
    pub fn serve(pod: &Host, addr: SocketAddr) -> Result<Self> {
        let mut crowd = Self::start(pod, &["serve".to_owned(), addr.to_string()])?;
        crowd.expect("listening")?;
        Ok(crowd)
    }

    /// A client that opens `count` connections to each address, with a byte there and back on each, and holds them.
    /// [`Crowd::opened`] waits until it has.
    pub fn hold(pod: &Host, count: usize, addrs: &[SocketAddr]) -> Result<Self> {
        let addrs = addrs.iter().map(ToString::to_string);
        let args: Vec<_> = ["hold".to_owned(), count.to_string()]
            .into_iter()
            .chain(addrs)
            .collect();
        Self::start(pod, &args)
    }

    fn start(pod: &Host, args: &[String]) -> Result<Self> {
        let mut command = pod.command(machine::binary("weft-crowd", "WEFT_CROWD_BIN")?);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command, &format!("weft-crowd in {}", pod.name()))?;
        let (orders, answers) = process.pipes().context("the pipes of weft-crowd")?;
        Ok(Self {
            process,
            orders,
            answers: BufReader::new(answers),
        })
    }

    /// Waits until all connections are open.
    pub fn opened(&mut self) -> Result<()> {
        self.expect("opened")
    }

    /// Sends a byte there and back on every connection.
    pub fn round(&mut self) -> Result<()> {
        self.orders.write_all(b"round\n")?;
        self.expect("alive")
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    fn expect(&mut self, wanted: &str) -> Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(line.trim() == wanted, "weft-crowd says {line:?}, not {wanted:?}");
        Ok(())
    }
}

/// The process: what it is told on its command line.
pub fn run(args: &[String]) -> Result<()> {
    machine::raise_file_limit();
    match args {
        [role, addr] if role == "serve" => serve(addr.parse()?),
        [role, count, addrs @ ..] if role == "hold" => {
            let addrs: Result<Vec<SocketAddr>, _> = addrs.iter().map(|addr| addr.parse()).collect();
            hold(count.parse()?, &addrs?)
        }
        _ => anyhow::bail!("usage: weft-crowd serve ADDR | hold COUNT ADDR..., started by the test world"),
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn hold(count: usize, addrs: &[SocketAddr]) -> Result<()> {
    let mut held = Vec::with_capacity(count * addrs.len());
    for nth in 0..count {
        for addr in addrs {
            let mut stream =
                TcpStream::connect(addr).with_context(|| format!("connection {nth} to {addr}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            round_trip(&mut stream).with_context(|| format!("connection {nth} to {addr}"))?;
            held.push(stream);
        }
    }
    say("opened")?;
    for order in io::stdin().lines() {
        order?;
        for (nth, stream) in held.iter_mut().enumerate() {
            round_trip(stream).with_context(|| format!("connection {nth} later"))?;
        }
        say("alive")?;
    }
    Ok(())
}

fn round_trip(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

/// The listener's number among the events; a connection's is its file.
const LISTENER: u64 = u64::MAX;

fn serve(addr: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    rustix::net::listen(&listener, 4096)?;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    watch(&poll, &listener, LISTENER)?;
    say("listening")?;
    let mut open: HashMap<RawFd, TcpStream> = HashMap::new();
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        match epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None) {
            Err(rustix::io::Errno::INTR) => continue,
            waited => waited?,
        };
        for event in &events {
            if event.data.u64() == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    let number = stream.as_raw_fd();
                    watch(&poll, &stream, u64::try_from(number)?)?;
                    open.insert(number, stream);
                }
                continue;
            }
            let number = RawFd::try_from(event.data.u64())?;
            if open.get_mut(&number).is_some_and(has_ended) {
                open.remove(&number);
            }
        }
    }
}

fn watch(poll: &impl AsFd, file: &impl AsFd, number: u64) -> rustix::io::Result<()> {
    epoll::add(
        poll,
        file,
        epoll::EventData::new_u64(number),
        epoll::EventFlags::IN,
    )
}

/// Sends back what has come.
fn has_ended(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(0) => true,
        Ok(read) => stream.write_all(&buffer[..read]).is_err(),
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}
