//! Contexts, which of them is current on a thread, and whether the process's work has failed.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::code::{Code, Outcome};
use crate::table::{Table, lock};
use crate::{config, stream};

/// Set by `cuInit`.
static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// The code of the launch that failed: every later call returns it.
static FAILED: AtomicU32 = AtomicU32::new(0);

/// Devices by the handles of their contexts.
static CONTEXTS: Table<i32> = Table::new();

/// Handle of each device's primary context, and how often it is held.
static PRIMARY: Mutex<BTreeMap<i32, (usize, u32)>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// The last is the current one; 0 stands for none.
    static STACK: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// What must be so before a driver function does anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// `cuInit` was called.
    Init,
    /// And no work has failed.
    Healthy,
    /// And a context is current.
    Context,
}

/// Runs the body of a driver function.
pub(crate) fn answer(needs: Needs, body: impl FnOnce() -> Outcome) -> u32 {
    let checked = || {
        if needs >= Needs::Init && !INITIALIZED.load(Ordering::Acquire) {
            return Err(Code::ERROR_NOT_INITIALIZED);
        }
        if needs >= Needs::Context {
            current()?;
        }
        if needs >= Needs::Healthy {
            healthy()?;
        }
        body()
    };
    checked().map_or_else(|code| code.0, |()| 0)
}

/// After `cuInit`.
pub(crate) fn initialize() {
    INITIALIZED.store(true, Ordering::Release);
}

/// The first failure stays.
pub(crate) fn fail(code: Code) {
    _ = FAILED.compare_exchange(0, code.0, Ordering::AcqRel, Ordering::Acquire);
}

/// Whether some work has failed.
pub(crate) fn has_failed() -> bool {
    FAILED.load(Ordering::Acquire) != 0
}

/// The failure, for those who waited for work.
pub(crate) fn healthy() -> Outcome {
    match FAILED.load(Ordering::Acquire) {
        0 => Ok(()),
        code => Err(Code(code)),
    }
}

/// Checks a device's number.
pub(crate) fn device(ordinal: i32) -> Outcome<i32> {
    let known = (0..config::devices()).contains(&ordinal);
    known.then_some(ordinal).ok_or(Code::ERROR_INVALID_DEVICE)
}

/// The current context and its device.
pub(crate) fn current() -> Outcome<(usize, i32)> {
    let handle = current_handle();
    Ok((handle, device_of(handle)?))
}

/// The current context, 0 if none.
pub(crate) fn current_handle() -> usize {
    STACK.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

/// The device of a context.
pub(crate) fn device_of(handle: usize) -> Outcome<i32> {
    CONTEXTS.get(handle).map(|ordinal| *ordinal).map_err(|_| Code::ERROR_INVALID_CONTEXT)
}

/// Replaces the current context; 0 for none.
pub(crate) fn set_current(handle: usize) -> Outcome {
    if handle != 0 {
        device_of(handle)?;
    }
    pop();
    push(handle)
}

/// Puts a context above the current one.
pub(crate) fn push(handle: usize) -> Outcome {
    if handle != 0 {
        device_of(handle)?;
    }
    STACK.with_borrow_mut(|stack| stack.push(handle));
    Ok(())
}

/// Takes the current context away.
pub(crate) fn pop() -> Option<usize> {
    STACK.with_borrow_mut(Vec::pop)
}

/// Holds a device's primary context.
pub(crate) fn retain(ordinal: i32) -> usize {
    let mut primary = lock(&PRIMARY);
    let (handle, held) = primary.entry(ordinal).or_insert_with(|| (CONTEXTS.insert(ordinal), 0));
    *held += 1;
    *handle
}

/// Lets it go; the last one ends it, and what has failed in it is forgotten.
pub(crate) fn release(ordinal: i32) -> Outcome {
    let mut primary = lock(&PRIMARY);
    let (handle, held) = primary.get_mut(&ordinal).ok_or(Code::ERROR_INVALID_CONTEXT)?;
    *held -= 1;
    if *held == 0 {
        // What is still queued gives up because of the failure, and must see it.
        if has_failed() {
            stream::synchronize_all();
        }
        CONTEXTS.remove(*handle)?;
        primary.remove(&ordinal);
        FAILED.store(0, Ordering::Release);
    }
    Ok(())
}

/// Whether a device's primary context is held.
pub(crate) fn is_active(ordinal: i32) -> bool {
    lock(&PRIMARY).contains_key(&ordinal)
}

/// Makes a context that is not primary.
pub(crate) fn create(ordinal: i32) -> usize {
    CONTEXTS.insert(ordinal)
}

/// Ends one that is not primary.
pub(crate) fn destroy(handle: usize) -> Outcome {
    CONTEXTS.remove(handle).map(drop).map_err(|_| Code::ERROR_INVALID_CONTEXT)
}
