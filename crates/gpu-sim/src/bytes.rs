//! Copies and fills, at once and in a stream.
use std::sync::Arc;

use crate::code::Outcome;
use crate::stream::Stream;
use crate::{context, memory};

/// Bytes from pageable memory that the driver takes without waiting for the stream (CUDA programming guide,
/// asynchronous execution: copies of 64 KB or less). For more it may wait, so programs must not rely on either.
const STAGED_AT_ONCE: usize = 64 << 10;

/// Rows of bytes at equal distances.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// Of the first row.
    pub(crate) address: usize,
    /// From one row to the next.
    pub(crate) pitch: usize,
}

/// A copy of `height` rows of `width` bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copy {
    pub(crate) to: Rows,
    pub(crate) from: Rows,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl Copy {
    /// One row.
    pub(crate) fn line(to: usize, from: usize, bytes: usize) -> Self {
        let row = |address| Rows { address, pitch: bytes };
        Self { to: row(to), from: row(from), width: bytes, height: 1 }
    }

    /// Whether there is nothing to do.
    fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// From the first byte of `rows` to the last.
    fn span(&self, rows: Rows) -> usize {
        (self.height - 1).saturating_mul(rows.pitch).saturating_add(self.width)
    }

    /// Refuses what the simulator knows to be wrong.
    fn check(&self) -> Outcome<Ends> {
        let kind = |rows: Rows| memory::kind(rows.address, self.span(rows));
        Ok(Ends { from_pageable: kind(self.from)?.is_none(), to_pageable: kind(self.to)?.is_none() })
    }

    /// Copies at once.
    fn run(&self) {
        for row in 0..self.height {
            let (to, from) =
                (self.to.address + row * self.to.pitch, self.from.address + row * self.from.pitch);
            // SAFETY: the caller of the C interface vouches for both ranges until the copy is complete; those that
            // are the simulator's own were checked when the copy was queued. They may overlap.
            unsafe { std::ptr::copy(from as *const u8, to as *mut u8, self.width) };
        }
    }
}

/// Which end of a copy is host memory that is not pinned.
struct Ends {
    from_pageable: bool,
    to_pageable: bool,
}

/// Copies before it returns.
pub(crate) fn copy_now(copy: Copy) -> Outcome {
    if !copy.is_empty() {
        copy.check()?;
        copy.run();
    }
    Ok(())
}

/// Copies in a stream, one after the other.
///
/// As in the real driver, what comes from pageable memory is taken before this returns, for which a piece above
/// [`STAGED_AT_ONCE`] waits for the stream; and this returns only when what goes to pageable memory is there.
pub(crate) fn copy_in_stream(stream: &Arc<Stream>, mut copies: Vec<Copy>) -> Outcome {
    copies.retain(|copy| !copy.is_empty());
    let ends = copies.iter().map(Copy::check).collect::<Outcome<Vec<_>>>()?;
    let is_large =
        |(copy, ends): (&Copy, &Ends)| ends.from_pageable && copy.width * copy.height > STAGED_AT_ONCE;
    if copies.iter().zip(&ends).any(is_large) {
        stream.synchronize();
    }
    let mut staged = Vec::new();
    for (copy, _) in copies.iter_mut().zip(&ends).filter(|(_, ends)| ends.from_pageable) {
        let mut buffer = vec![0_u8; copy.width * copy.height];
        let rows = Rows { address: buffer.as_mut_ptr() as usize, pitch: copy.width };
        Copy { to: rows, ..*copy }.run();
        copy.from = rows;
        staged.push(buffer);
    }
    stream.push_here(move || {
        copies.iter().for_each(Copy::run);
        drop(staged);
    });
    if ends.iter().any(|ends| ends.to_pageable) {
        stream.synchronize();
        context::healthy()?;
    }
    Ok(())
}

/// Fills at once.
pub(crate) fn fill(address: usize, bytes: usize, value: u8) {
    // SAFETY: the caller of the C interface vouches for the range, or it is memory that was just made.
    unsafe { std::ptr::write_bytes(address as *mut u8, value, bytes) };
}

/// A fill of `height` rows with a pattern of 1, 2 or 4 bytes.
pub(crate) struct Fill {
    pub(crate) to: Rows,
    /// Patterns in a row.
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// As it lies in memory.
    pub(crate) pattern: Vec<u8>,
}

impl Fill {
    /// Refuses what the simulator knows to be wrong.
    pub(crate) fn check(&self) -> Outcome {
        if self.width > 0 && self.height > 0 {
            let row = self.width * self.pattern.len();
            memory::kind(self.to.address, (self.height - 1) * self.to.pitch + row)?;
        }
        Ok(())
    }

    /// Fills at once.
    pub(crate) fn run(&self) {
        let row = self.pattern.repeat(self.width);
        let from = row.as_ptr() as usize;
        for at in 0..self.height {
            Copy::line(self.to.address + at * self.to.pitch, from, row.len()).run();
        }
    }
}
