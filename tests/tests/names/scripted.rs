//! A DNS server that says what a test wants it to, over sockets of a pod.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

/// How often a server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// A server that runs until it is dropped.
pub(crate) struct Scripted {
    end: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<SocketAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    /// Answers each datagram of `socket` with those that `answer` makes of it.
    pub(crate) fn start(
        socket: UdpSocket,
        answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Result<Self> {
        socket.set_read_timeout(Some(LOOK))?;
        let (end, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (ended, asking) = (Arc::clone(&end), Arc::clone(&asked));
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            while !ended.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                asking.lock().unwrap_or_else(PoisonError::into_inner).push(from);
                for datagram in answer(&buffer[..length]) {
                    let _ = socket.send_to(&datagram, from);
                }
            }
        });
        Ok(Self {
            end,
            asked,
            thread: Some(thread),
        })
    }

    /// Who asked, in order; IPv4 as IPv4.
    pub(crate) fn asked(&self) -> Vec<SocketAddr> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked
            .iter()
            .map(|from| SocketAddr::new(from.ip().to_canonical(), from.port()))
            .collect()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
