//! What a call cost: bytes, busy time, exposed time.
use std::time::Duration;

use serde::Serialize;
use symm_buffer::{Bytes, Pe};

use super::signals::SignalKind;
use super::times::{DeviceTimes, WaitSpan};

/// Forward or backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PassKind {
    /// O and LSE.
    Forward,
    /// dQ, dK, dV.
    Backward,
}

impl PassKind {
    /// `forward` or `backward`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }
}

/// One wait of the compute stream.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Blocked {
    /// Name of the stage: `gather`, `reduce`, `gather-free`, `slot-free`, `agree` or `drain`.
    pub stage: &'static str,
    /// For whom.
    pub peer: Pe,
    /// Which piece of the stage.
    pub piece: u32,
    /// For how long.
    pub time: Duration,
}

/// What one call of one rank did and cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallReport {
    /// Whose.
    pub rank: Pe,
    /// Which pass.
    pub pass: PassKind,
    /// From entry to return. An enqueued call returns at once, so that this is what it costs the calling thread.
    pub elapsed: Duration,
    /// Time in the arithmetic, without its waits; zero for enqueued calls that are not measured, as the host does not see
    /// their arithmetic.
    pub busy: Duration,
    /// Time that the compute stream was blocked in waits: the sum of `waits`. Of enqueued calls only what blocked the
    /// calling thread; if they are measured, [`DeviceTimes::exposed`].
    pub exposed: Duration,
    /// The waits that blocked, in order. Of measured calls also those of attention, each as long as the longest of a block.
    pub waits: Vec<Blocked>,
    /// Bytes that were handed to the fabric for each rank.
    pub bytes_to: Vec<Bytes>,
    /// Bytes that a gather (and reduce) blind to the mask would send.
    pub bytes_mask_blind: Bytes,
    /// Floating-point operations on visible pairs.
    pub flops: u64,
    /// What an enqueued call queued; zeros for calls that wait.
    pub queued: Queued,
    /// What the device says of an enqueued call that was measured, after its end.
    pub device: Option<DeviceTimes>,
}

/// Calls to the fabric that queue work: each is one call to a device's driver, or two if there are copies and signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Queued {
    /// Batches of puts.
    pub puts: u32,
    /// Stream waits for a peer.
    pub waits: u32,
    /// Streams that were made to follow another.
    pub follows: u32,
}

impl CallReport {
    /// Adds what the device says of the call.
    pub fn add_device_times(&mut self, times: DeviceTimes) {
        let stage = SignalKind::Ready.stage();
        let blocked =
            |wait: &WaitSpan| Blocked { stage, peer: wait.peer, piece: wait.piece, time: wait.longest };
        self.waits.extend(times.waits.iter().map(blocked));
        self.exposed = times.exposed();
        self.busy = times.attention.duration().saturating_sub(self.exposed);
        self.device = Some(times);
    }

    /// Bytes sent to all ranks.
    pub fn bytes_sent(&self) -> Bytes {
        Bytes(self.bytes_to.iter().map(|bytes| bytes.0).sum())
    }
}
