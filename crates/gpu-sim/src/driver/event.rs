//! Events.
use std::sync::{Arc, Mutex};

use crate::code::{Code, Outcome};
use crate::context::{self, Needs, answer};
use crate::marker::Marker;
use crate::stream::Work;
use crate::table::{Table, lock};
use crate::{c, stream};

static EVENTS: Table<Event> = Table::new();

/// `CU_EVENT_DISABLE_TIMING`.
const NO_TIMING: u32 = 2;

struct Event {
    flags: u32,
    /// The last recording; earlier ones live on in the waits for them.
    recorded: Mutex<Option<Arc<Marker>>>,
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: *mut usize, flags: u32) -> u32 {
    answer(Needs::Context, || c::out(event, EVENTS.insert(Event { flags, recorded: Mutex::new(None) })))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: usize) -> u32 {
    answer(Needs::Init, || EVENTS.remove(event).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: usize, stream: usize) -> u32 {
    answer(Needs::Healthy, || record(event, stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecordWithFlags(event: usize, stream: usize, _flags: u32) -> u32 {
    answer(Needs::Healthy, || record(event, stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: usize) -> u32 {
    answer(Needs::Healthy, || match recorded(event)? {
        Some(marker) if marker.time().is_none() => Err(Code::ERROR_NOT_READY),
        _ => context::healthy(),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: usize) -> u32 {
    answer(Needs::Healthy, || {
        if let Some(marker) = recorded(event)? {
            marker.wait();
        }
        context::healthy()
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: u32) -> u32 {
    answer(Needs::Healthy, || {
        let stream = stream::get(stream)?;
        if let Some(marker) = recorded(event)? {
            stream.push_here(move || marker.wait());
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) -> u32 {
    answer(Needs::Healthy, || elapsed(milliseconds, start, end))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: usize, end: usize) -> u32 {
    answer(Needs::Healthy, || elapsed(milliseconds, start, end))
}

fn recorded(event: usize) -> Outcome<Option<Arc<Marker>>> {
    Ok(lock(&EVENTS.get(event)?.recorded).clone())
}

fn record(event: usize, stream: usize) -> Outcome {
    let (event, stream) = (EVENTS.get(event)?, stream::get(stream)?);
    let marker = Arc::new(Marker::default());
    *lock(&event.recorded) = Some(marker.clone());
    stream.push(Work::Always(Box::new(move || marker.set())));
    Ok(())
}

fn elapsed(milliseconds: *mut f32, start: usize, end: usize) -> Outcome {
    let time = |event: usize| {
        let event = EVENTS.get(event)?;
        let recorded = lock(&event.recorded).clone();
        match recorded {
            Some(marker) if event.flags & NO_TIMING == 0 => marker.time().ok_or(Code::ERROR_NOT_READY),
            _ => Err(Code::ERROR_INVALID_HANDLE),
        }
    };
    let (start, end) = (time(start)?, time(end)?);
    c::out(milliseconds, end.saturating_duration_since(start).as_secs_f32() * 1e3)
}
