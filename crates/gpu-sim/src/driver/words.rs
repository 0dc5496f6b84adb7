//! Stream memory operations: a stream writes a word after all that it did before, or waits for one.
use crate::code::{Code, Outcome};
use crate::context::{Needs, answer};
use crate::word::{Until, Word};
use crate::{c, stream};

/// One operation.
#[derive(Clone, Copy)]
enum Operation {
    Write(Word, u64),
    Wait(Word, Until),
    /// Flushes and barriers: x86's memory needs none.
    Nothing,
}

impl Operation {
    fn write(address: usize, bytes: usize, value: u64, flags: u32) -> Outcome<Self> {
        // 1 gives up the order after earlier work, which is never needed.
        if flags > 1 {
            return Err(Code::ERROR_INVALID_VALUE);
        }
        Ok(Self::Write(Word::new(address, bytes)?, value))
    }

    fn wait(address: usize, bytes: usize, value: u64, flags: u32) -> Outcome<Self> {
        Ok(Self::Wait(Word::new(address, bytes)?, Until::from_flags(flags, value)?))
    }

    /// From `CUstreamBatchMemOpParams`: the operation's number, the address, the value, the flags. Numbers of four
    /// bytes lie in the lower half of a word.
    #[expect(clippy::cast_possible_truncation, reason = "the upper half of these words is padding")]
    fn from_parameters([operation, address, value, flags, ..]: [u64; 6]) -> Outcome<Self> {
        let (address, flags) = (address as usize, flags as u32);
        let lower = u64::from(value as u32);
        match operation as u32 {
            1 => Self::wait(address, 4, lower, flags),
            2 => Self::write(address, 4, lower, flags),
            4 => Self::wait(address, 8, value, flags),
            5 => Self::write(address, 8, value, flags),
            3 | 6 => Ok(Self::Nothing),
            _ => Err(Code::ERROR_INVALID_VALUE),
        }
    }

    fn run(self) {
        match self {
            Self::Write(word, value) => word.store(value),
            Self::Wait(word, until) => word.wait(until),
            Self::Nothing => {}
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWriteValue32_v2(stream: usize, address: usize, value: u32, flags: u32) -> u32 {
    queued(stream, || Ok(vec![Operation::write(address, 4, value.into(), flags)?]))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWriteValue64_v2(stream: usize, address: usize, value: u64, flags: u32) -> u32 {
    queued(stream, || Ok(vec![Operation::write(address, 8, value, flags)?]))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitValue32_v2(stream: usize, address: usize, value: u32, flags: u32) -> u32 {
    queued(stream, || Ok(vec![Operation::wait(address, 4, value.into(), flags)?]))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitValue64_v2(stream: usize, address: usize, value: u64, flags: u32) -> u32 {
    queued(stream, || Ok(vec![Operation::wait(address, 8, value, flags)?]))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBatchMemOp_v2(
    stream: usize,
    count: u32,
    parameters: *const [u64; 6],
    flags: u32,
) -> u32 {
    queued(stream, || {
        // The limit of the real driver.
        if count > 256 || flags != 0 {
            return Err(Code::ERROR_INVALID_VALUE);
        }
        c::array(parameters, count as usize)?.into_iter().map(Operation::from_parameters).collect()
    })
}

fn queued(stream: usize, operations: impl FnOnce() -> Outcome<Vec<Operation>>) -> u32 {
    answer(Needs::Healthy, || {
        let (stream, operations) = (stream::get(stream)?, operations()?);
        stream.push_here(move || operations.into_iter().for_each(Operation::run));
        Ok(())
    })
}
