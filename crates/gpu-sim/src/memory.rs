//! Which addresses are device memory, pinned host memory or a symmetric heap, and which were freed.
use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::code::{Code, Outcome};
use crate::table::lock;
use crate::{bytes, config, map};

/// Ranges by their first address. They never overlap: addresses of freed memory are not used again.
static RANGES: Mutex<BTreeMap<usize, Range>> = Mutex::new(BTreeMap::new());

/// Whose memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Made by `cuMemAlloc` and its like.
    Device,
    /// Made by `cuMemHostAlloc` and its like.
    Pinned,
    /// The caller's, made known by `cuMemHostRegister`.
    Registered,
    /// A symmetric heap, this process's or a peer's.
    Symmetric,
    /// A module's.
    Variable,
    /// A copy or a word there is a mistake.
    Freed,
}

/// Where an address lies.
#[derive(Clone, Copy)]
pub(crate) struct Range {
    pub(crate) first: usize,
    pub(crate) bytes: usize,
    pub(crate) kind: Kind,
}

/// New device memory, or pinned host memory.
pub(crate) fn allocate(bytes: usize, kind: Kind) -> Outcome<usize> {
    if bytes == 0 {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    if kind == Kind::Device && bytes > free_bytes() {
        return Err(Code::ERROR_OUT_OF_MEMORY);
    }
    let first = map::anonymous(bytes).map_err(|_| Code::ERROR_OUT_OF_MEMORY)?;
    if kind == Kind::Device && config::poison() {
        bytes::fill(first, bytes, 0xFF);
    }
    add(Range { first, bytes, kind });
    Ok(first)
}

/// Frees what [`allocate`] gave. Its addresses stay mapped, so that work which still uses them does not crash.
pub(crate) fn free(first: usize, kind: Kind) -> Outcome {
    let mut ranges = lock(&RANGES);
    let range = ranges.get_mut(&first).filter(|range| range.kind == kind).ok_or(Code::ERROR_INVALID_VALUE)?;
    range.kind = Kind::Freed;
    map::discard(range.first, range.bytes);
    Ok(())
}

/// Makes the caller's memory known.
pub(crate) fn register(first: usize, bytes: usize) -> Outcome {
    if first == 0 || bytes == 0 {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    let mut ranges = lock(&RANGES);
    // Ranges do not overlap: of those that begin before the end, the last ends last.
    let last = ranges.range(..first.saturating_add(bytes)).next_back();
    if last.is_some_and(|(_, last)| last.first + last.bytes > first) {
        return Err(Code::ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    }
    ranges.insert(first, Range { first, bytes, kind: Kind::Registered });
    Ok(())
}

/// Makes a variable of a module known; the same again changes nothing.
pub(crate) fn register_variable(first: usize, bytes: usize) {
    if bytes > 0 {
        add(Range { first, bytes, kind: Kind::Variable });
    }
}

/// Takes [`register`] back.
pub(crate) fn unregister(first: usize) -> Outcome {
    let mut ranges = lock(&RANGES);
    let known = ranges.get(&first).is_some_and(|range| range.kind == Kind::Registered);
    known.then(|| ranges.remove(&first)).map(drop).ok_or(Code::ERROR_HOST_MEMORY_NOT_REGISTERED)
}

/// Notes a range that somebody else made.
pub(crate) fn add(range: Range) {
    lock(&RANGES).insert(range.first, range);
}

/// Forgets a range that was noted by [`add`].
pub(crate) fn remove(first: usize) {
    lock(&RANGES).remove(&first);
}

/// The range in which an address lies.
pub(crate) fn find(address: usize) -> Option<Range> {
    let ranges = lock(&RANGES);
    let (_, range) = ranges.range(..=address).next_back()?;
    (address - range.first < range.bytes).then_some(*range)
}

/// What memory this is; `None` for ordinary host memory.
///
/// Refuses null, freed memory, and what starts in an allocation and ends past it.
pub(crate) fn kind(address: usize, bytes: usize) -> Outcome<Option<Kind>> {
    if address == 0 {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    let Some(range) = find(address) else { return Ok(None) };
    let past = bytes > range.bytes - (address - range.first);
    if range.kind == Kind::Freed || (past && range.kind != Kind::Registered) {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    Ok(Some(range.kind))
}

/// Device memory that is left.
pub(crate) fn free_bytes() -> usize {
    let ranges = lock(&RANGES);
    let used = ranges.values().filter(|range| range.kind == Kind::Device).map(|range| range.bytes).sum();
    config::memory().saturating_sub(used)
}
