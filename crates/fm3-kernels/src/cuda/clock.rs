//! A device's clock beside the system's: how times of several devices come on one line.
#![expect(unsafe_code, reason = "pinned memory is shared with the device")]
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cudarc::driver::{CudaStream, PinnedHostSlice, sys};
use serde::{Deserialize, Serialize};

use super::driver::Named;
use super::{CudaError, Probes};
use crate::Error;
use crate::params::ProbeClockParams;

/// Questions that are asked; the answer that came soonest counts.
const ROUNDS: u32 = 64;
/// For the kernel to begin: it needs a multiprocessor that somebody else may have.
const PATIENCE: Duration = Duration::from_secs(10);

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockPair {
    /// Of the system, nanoseconds since 1970.
    pub host_ns: u64,
    /// Of the device, nanoseconds of `%globaltimer`.
    pub device_ns: u64,
    /// The moments may be as far apart.
    pub error: Duration,
}

impl Probes {
    /// Reads both clocks: the host asks a kernel of one thread by a word and takes the middle of question and answer as
    /// the moment of the kernel's reading. 64 times; the one with the shortest round trip counts, a microsecond or two
    /// over PCIe. Waits for all work on `stream`.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also when the device has no room for the kernel for 10 s.
    pub fn read_clock(&self, stream: &Arc<CudaStream>) -> Result<ClockPair, Error> {
        let words = Words::new(stream)?;
        let deadline_ns = u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
        let address = words.address as u64;
        let params =
            ProbeClockParams { word: address, replies: address + 8, rounds: ROUNDS.into(), deadline_ns };
        // SAFETY: the words are pinned memory of the right number, which is dropped behind the wait below.
        let best = unsafe { self.clock(stream, &params) }.map(|()| words.ask());
        // Also when nobody answers: the kernel ends by its deadline.
        stream.synchronize().named("cuStreamSynchronize")?;
        best?.ok_or_else(|| {
            let text = format!("the device did not answer in {PATIENCE:?}; it may be full of other work");
            CudaError::Driver {
                call: "fm3_probe_clock",
                code: sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT as u32,
                text,
            }
            .into()
        })
    }
}

/// The word of the question, and one for each answer.
struct Words {
    address: *mut u64,
    _memory: PinnedHostSlice<u64>,
}

impl Words {
    fn new(stream: &CudaStream) -> Result<Self, Error> {
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        let context = stream.context();
        // SAFETY: all words are written below, before anybody reads them.
        let memory = unsafe { context.alloc_pinned_with_flags::<u64>(1 + ROUNDS as usize, flags) };
        let mut memory = memory.named("cuMemHostAlloc")?;
        let address = memory.as_mut_ptr().named("cuEventSynchronize")?;
        let words = Self { address, _memory: memory };
        (0..=ROUNDS).for_each(|index| words.word(index).store(0, Ordering::SeqCst));
        Ok(words)
    }

    fn word(&self, index: u32) -> &AtomicU64 {
        let address = self.address.wrapping_add(index as usize);
        // SAFETY: at most ROUNDS, so inside the allocation, which lives as long as `self` and is aligned; the host touches
        // it by these atomics alone.
        unsafe { AtomicU64::from_ptr(address) }
    }

    /// The answer with the shortest round trip; none when one does not come.
    fn ask(&self) -> Option<ClockPair> {
        let limit = Instant::now() + PATIENCE;
        let mut best: Option<ClockPair> = None;
        for round in 1..=ROUNDS {
            let asked = nanoseconds_since_1970();
            self.word(0).store(round.into(), Ordering::SeqCst);
            let device_ns = loop {
                match self.word(round).load(Ordering::SeqCst) {
                    0 if Instant::now() >= limit => return None,
                    0 => std::hint::spin_loop(),
                    reply => break reply,
                }
            };
            let half = nanoseconds_since_1970().saturating_sub(asked) / 2;
            let pair = ClockPair { host_ns: asked + half, device_ns, error: Duration::from_nanos(half) };
            best = Some(best.filter(|best| best.error <= pair.error).unwrap_or(pair));
        }
        best
    }
}

fn nanoseconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
