//! Words of memory that streams, kernels, hosts and other processes tell each other things by.
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::code::{Code, Outcome};
use crate::{context, memory};

/// Loads in a row before the first sleep: a partner that runs right now answers within them.
const SPINS: u32 = 1000;

/// Between two looks after that: many processes share few cores.
const SLEEP: Duration = Duration::from_micros(50);

/// 4 or 8 bytes, where a stream may read and write them.
#[derive(Clone, Copy)]
pub(crate) enum Word {
    Four(usize),
    Eight(usize),
}

/// When a wait ends; the numbers are `CUstreamWaitValue_flags`.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// The difference is not negative, so that counters may wrap.
    NotBehind(u64),
    Equal(u64),
    AnyBitOf(u64),
    /// `!(word | value)` has a bit.
    Nor(u64),
}

impl Word {
    /// A word that streams can use: aligned, and in memory that the device can reach.
    pub(crate) fn new(address: usize, bytes: usize) -> Outcome<Self> {
        let reachable = memory::kind(address, bytes)?.is_some();
        match bytes {
            4 if reachable && address.is_multiple_of(4) => Ok(Self::Four(address)),
            8 if reachable && address.is_multiple_of(8) => Ok(Self::Eight(address)),
            _ => Err(Code::ERROR_INVALID_VALUE),
        }
    }

    /// Sees what was before the store whose value it returns.
    pub(crate) fn load(self) -> u64 {
        match self {
            Self::Four(address) => u64::from(four(address).load(Ordering::Acquire)),
            Self::Eight(address) => eight(address).load(Ordering::Acquire),
        }
    }

    /// After everything before.
    #[expect(clippy::cast_possible_truncation, reason = "a word of four bytes takes the lower half")]
    pub(crate) fn store(self, value: u64) {
        match self {
            Self::Four(address) => four(address).store(value as u32, Ordering::Release),
            Self::Eight(address) => eight(address).store(value, Ordering::Release),
        }
    }

    /// Adds with wrap-around.
    #[expect(clippy::cast_possible_truncation, reason = "a word of four bytes takes the lower half")]
    pub(crate) fn add(self, value: u64) {
        match self {
            Self::Four(address) => _ = four(address).fetch_add(value as u32, Ordering::AcqRel),
            Self::Eight(address) => _ = eight(address).fetch_add(value, Ordering::AcqRel),
        }
    }

    /// Blocks until the word is as wanted, or the context has failed.
    pub(crate) fn wait(self, until: Until) {
        poll(|| self.is(until) || context::has_failed());
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "signs by definition")]
    fn is(self, until: Until) -> bool {
        let now = self.load();
        match until {
            Until::NotBehind(value) => {
                let ahead = now.wrapping_sub(value);
                if matches!(self, Self::Four(_)) { (ahead as u32 as i32) >= 0 } else { (ahead as i64) >= 0 }
            }
            Until::Equal(value) => now == value,
            Until::AnyBitOf(value) => now & value != 0,
            Until::Nor(value) if matches!(self, Self::Four(_)) => !((now | value) as u32) != 0,
            Until::Nor(value) => !(now | value) != 0,
        }
    }
}

impl Until {
    /// From the flags of a wait and its value.
    pub(crate) fn from_flags(flags: u32, value: u64) -> Outcome<Self> {
        // Bit 30 asks to flush what other devices wrote, which needs nothing here.
        match flags & !(1 << 30) {
            0 => Ok(Self::NotBehind(value)),
            1 => Ok(Self::Equal(value)),
            2 => Ok(Self::AnyBitOf(value)),
            3 => Ok(Self::Nor(value)),
            _ => Err(Code::ERROR_INVALID_VALUE),
        }
    }
}

/// Looks until it is so. There is no deadline, as on real hardware.
pub(crate) fn poll(mut is_so: impl FnMut() -> bool) {
    for _ in 0..SPINS {
        if is_so() {
            return;
        }
    }
    while !is_so() {
        thread::sleep(SLEEP);
    }
}

fn four<'a>(address: usize) -> &'a AtomicU32 {
    // SAFETY: the address is aligned, was found in memory of the simulator's when the word was made, and is used as
    // an atomic word by all who share it.
    unsafe { AtomicU32::from_ptr(address as *mut u32) }
}

fn eight<'a>(address: usize) -> &'a AtomicU64 {
    // SAFETY: as in `four`.
    unsafe { AtomicU64::from_ptr(address as *mut u64) }
}
