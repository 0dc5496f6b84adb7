//! Times that the forward kernel takes itself: its begin and end, and its waits for pieces of keys.
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, SyncOnDrop};

use super::check::wrong;
use super::driver::Named;
use crate::Error;
use crate::params::WaitTimes;

const CALL: &str = "ForwardTimes::new";

/// Words of a record.
const WORDS: usize = size_of::<WaitTimes>() / 8;

/// Records of one forward call, in device memory. A block's thread that loads keys adds to them after a wait; the
/// attention itself does not know of them.
#[derive(Debug)]
pub struct ForwardTimes {
    words: CudaSlice<u64>,
    of: PieceCounts,
}

/// What there is a record for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceCounts {
    /// Key segments of the call.
    pub segments: usize,
    /// Pieces of each: KV heads / [`Wait::heads_per_piece`](super::Wait::heads_per_piece), rounded up.
    pub pieces: usize,
}

/// From one reading of the device's clock to another, nanoseconds of `%globaltimer`, which steps by 32 ns to 1 us. Clocks
/// of two devices have nothing to do with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceSpan {
    /// First.
    pub begin: u64,
    /// Last.
    pub end: u64,
}

impl DeviceSpan {
    /// How long.
    pub const fn duration(&self) -> Duration {
        Duration::from_nanos(self.end.saturating_sub(self.begin))
    }
}

/// What a call took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardTook {
    /// From the first block's begin until the last block's last tile was on its way to memory.
    pub launch: DeviceSpan,
    /// Blocks of the launch.
    pub blocks: u64,
    /// Pieces that were waited for, by segment, then by piece.
    pub waits: Vec<PieceWait>,
}

/// Waits of all blocks for one piece. They end together, when it comes: so the first to wait waits longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceWait {
    /// Index of the key segment.
    pub segment: usize,
    /// Which of its pieces.
    pub piece: usize,
    /// From the first block's begin to the last block's end.
    pub span: DeviceSpan,
    /// The longest of a block.
    pub longest: Duration,
    /// Sum over blocks.
    pub sum: Duration,
    /// Blocks that waited, for longer than a step of the clock.
    pub blocks: u64,
}

impl ForwardTimes {
    /// Records for one call on `stream`.
    ///
    /// # Errors
    /// [`CudaError::Value`](super::CudaError::Value) when there are none or too many; [`CudaError::Driver`](super::CudaError::Driver).
    pub fn new(stream: &Arc<CudaStream>, of: PieceCounts) -> Result<Self, Error> {
        let records = of.segments.checked_mul(of.pieces).filter(|records| (1..1 << 24).contains(records));
        let records = records.ok_or_else(|| {
            wrong(CALL, "segments", of.segments as u64, "times pieces, 1 to 2^24 records".to_owned())
        })?;
        let words = stream.alloc_zeros((1 + records) * WORDS).named("cuMemAllocAsync")?;
        Ok(Self { words, of })
    }

    /// What the call took, which is over: copied on the stream `beside`, which is waited for. Nothing when no call has
    /// used it.
    ///
    /// # Errors
    /// [`CudaError::Driver`](super::CudaError::Driver).
    pub fn read(&self, beside: &Arc<CudaStream>) -> Result<Option<ForwardTook>, Error> {
        let words = beside.clone_dtoh(&self.words).named("cuMemcpyDtoHAsync")?;
        beside.synchronize().named("cuStreamSynchronize")?;
        Ok(took(bytemuck::cast_slice(&words), self.of.pieces))
    }

    /// What it was made for.
    pub const fn counts(&self) -> PieceCounts {
        self.of
    }

    /// Its address, for a call that is enqueued before the record is dropped.
    pub(super) fn address<'a>(&'a self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        self.words.device_ptr(stream)
    }
}

fn took(records: &[WaitTimes], pieces: usize) -> Option<ForwardTook> {
    let (launch, pieces_of) = records.split_first()?;
    let waits = pieces_of.iter().enumerate().filter_map(|(index, times)| {
        Some(PieceWait {
            segment: index / pieces,
            piece: index % pieces,
            span: span(times)?,
            longest: Duration::from_nanos(times.longest_ns),
            sum: Duration::from_nanos(times.sum_ns),
            blocks: times.blocks,
        })
    });
    Some(ForwardTook { launch: span(launch)?, blocks: launch.blocks, waits: waits.collect() })
}

fn span(times: &WaitTimes) -> Option<DeviceSpan> {
    (times.begin_inverted != 0).then_some(DeviceSpan { begin: !times.begin_inverted, end: times.end })
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    #[test]
    fn records_are_read_by_segment_and_piece_and_empty_ones_are_none() {
        let mut records = [WaitTimes::zeroed(); 1 + 3 * 2];
        assert_eq!(took(&records, 2), None);
        records[0] = WaitTimes { begin_inverted: !100, end: 900, blocks: 3, ..records[0] };
        let times = WaitTimes { begin_inverted: !150, end: 400, sum_ns: 300, longest_ns: 250, blocks: 2 };
        records[1 + 2 * 2 + 1] = times;
        let took = took(&records, 2).unwrap();
        assert_eq!((took.launch.duration(), took.blocks), (Duration::from_nanos(800), 3));
        let nanos = Duration::from_nanos;
        let wait = PieceWait {
            segment: 2,
            piece: 1,
            span: DeviceSpan { begin: 150, end: 400 },
            longest: nanos(250),
            sum: nanos(300),
            blocks: 2,
        };
        assert_eq!(took.waits, [wait]);
    }
}
