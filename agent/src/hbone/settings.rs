//! Every number of the tunnel, with its reason. Read by `pool` and `server`.

use std::time::Duration;

use h2::{client, server};

use super::Buffers;
use crate::net::copy::LARGE;

/// Limits and deadlines of tunnels. The defaults are those of Istio's ambient mode unless a comment says why not.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TCP to the other node.
    pub dial_timeout: Duration,
    /// TLS, and then the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// From CONNECT to its answer; the other agent dials the app in that time.
    pub answer_timeout: Duration,
    /// A tunnel without a stream is closed after this by the side that dialled it, and a fifth later by the other.
    pub idle_timeout: Duration,
    /// The same where another tunnel of the pair has room: a burst leaves a hundred of them, each with what its streams needed.
    pub spare_timeout: Duration,
    /// How often a PING asks whether the other end is still there.
    pub ping_interval: Duration,
    /// How long the answer to a PING may take before the tunnel is given up.
    pub ping_timeout: Duration,
    /// Streams on one connection; the next one goes onto another.
    pub max_streams: usize,
    /// Tunnels of a pair that may be left to their bulk streams while new streams get another.
    pub heavy_tunnels: usize,
    /// Bytes in flight on one stream.
    pub stream_window: u32,
    /// Bytes in flight on a connection. Larger than a stream's, or one reader that stops would stop all.
    pub connection_window: u32,
    /// The same, of a tunnel of a pair that has many: what it may hold whatever others hold is less then.
    pub connection_window_narrow: u32,
    /// The same, grown by what readers that stopped have not taken (see `window`): what a tunnel may hold in memory.
    pub connection_window_most: u32,
    /// What tunnels grow into, all of them together.
    pub buffers: Buffers,
    /// The longest frame that we take.
    pub max_frame: u32,
    /// How long the answer to a GOAWAY may take where no stream is open: who does not give it is gone, as the network of a pod is
    /// that has ended.
    pub goaway_timeout: Duration,
    /// How long streams may go on after a drain began, before they are cut.
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(300),
            spare_timeout: Duration::from_secs(20),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            max_streams: 100,
            heavy_tunnels: 3,
            stream_window: 4 << 20,
            connection_window: 16 << 20,
            connection_window_narrow: 4 << 20,
            connection_window_most: 64 << 20,
            buffers: Buffers::new(512 << 20, 128 << 20),
            max_frame: 1 << 20,
            goaway_timeout: Duration::from_secs(3),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// What small DATA frames that nobody has read yet may cost, at 256 bytes less their length each.
///
/// h2's default is half the connection window, and a connection that exceeds it is closed with every stream on it. But
/// one turn of the event loop can take in 1 MiB (`net::tls::ReadAhead`) before any stream gets to read: some 100,000
/// frames of one byte, as a hundred chatty apps may well send while this node is busy, and what was decrypted before
/// comes on top. This is 131,000 of them, about 32 MiB of memory. Streams always take what arrived (see `stream`), so
/// only a peer that means harm gets beyond it.
const DATA_FRAME_BUDGET: usize = 128 * 1024 * 256;

/// Streams that the peer opened and reset before we looked at them. h2's default of 20 is less than a burst of apps
/// that give up together; twice the streams of a connection is not.
const PENDING_RESETS: usize = 200;

/// Streams that we reset and still remember, so that frames on their way to them are no error, and for how long.
const REMEMBERED_RESETS: usize = 1024;
const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// Bytes that one stream may queue in HTTP/2: the longest read, so that it is one frame.
const SEND_BUFFER: usize = LARGE;

/// A CONNECT needs a few hundred bytes; the baggage may have 8 KiB. More is refused with a line and counted.
pub(super) const HEADER_LIST: usize = 16 * 1024;
/// More than this HTTP/2 refuses by itself (431), without keeping it.
const HEADER_LIST_MOST: u32 = 64 * 1024;

impl Settings {
    pub(super) fn client(&self, window: u32) -> client::Builder {
        let mut builder = client::Builder::new();
        builder
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(window)
            .max_frame_size(self.max_frame)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEADER_LIST_MOST)
            .initial_max_send_streams(self.max_streams)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .reset_stream_duration(REMEMBERED_FOR)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .enable_push(false);
        builder
    }

    pub(super) fn server(&self, window: u32) -> server::Builder {
        let mut builder = server::Builder::new();
        builder
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(window)
            .max_frame_size(self.max_frame)
            .max_send_buffer_size(SEND_BUFFER)
            .max_header_list_size(HEADER_LIST_MOST)
            .max_concurrent_streams(u32::try_from(self.max_streams).unwrap_or(u32::MAX))
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .reset_stream_duration(REMEMBERED_FOR)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .data_frame_budget(DATA_FRAME_BUDGET);
        builder
    }
}
