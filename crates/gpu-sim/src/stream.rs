//! Streams and the hardware connections that they share.
//!
//! A connection is one thread with one queue. The operation at its head waits until the operation before it in its own
//! stream is complete, and everything behind it in the queue waits too, whatever stream it is of: a blocked stream
//! blocks its whole connection. Launches run on threads of their own, everything else on the connection's.
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::thread;

use crate::code::{Code, Outcome};
use crate::table::{Table, lock};
use crate::{config, context};

/// Streams that were made and not destroyed.
static STREAMS: Table<Stream> = Table::new();

/// All streams that still have work or a handle.
static ALL: Mutex<Vec<Weak<Stream>>> = Mutex::new(Vec::new());

/// What a stream does.
pub(crate) enum Work {
    /// On the connection's thread.
    Here(Box<dyn FnOnce() + Send>),
    /// As `Here`, also when the context has failed: others wait for it.
    Always(Box<dyn FnOnce() + Send>),
    /// On a thread of its own.
    Apart(Box<dyn FnOnce() + Send>),
}

/// A queue of operations of which each starts when the one before is complete.
pub(crate) struct Stream {
    connection: Arc<Connection>,
    /// Operations that were queued.
    queued: Mutex<u64>,
    /// Operations that are complete.
    complete: Mutex<u64>,
    changed: Condvar,
    /// As it was made with.
    pub(crate) flags: u32,
    /// As it was made with.
    pub(crate) priority: i32,
}

/// Makes a stream on the next connection in turn.
pub(crate) fn create(flags: u32, priority: i32) -> Outcome<usize> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    static CONNECTIONS: OnceLock<Vec<Arc<Connection>>> = OnceLock::new();
    let connections =
        CONNECTIONS.get_or_init(|| (0..config::connections()).map(|_| Arc::default()).collect());
    let at = NEXT.fetch_add(1, Ordering::Relaxed) % connections.len();
    let handle = STREAMS.insert(Stream::new(&connections[at], flags, priority)?);
    remember(&STREAMS.get(handle)?);
    Ok(handle)
}

/// Forgets a stream; its work goes on.
pub(crate) fn destroy(handle: usize) -> Outcome {
    STREAMS.remove(handle).map(drop)
}

/// The stream of a handle. The legacy (0, 1) and per-thread (2) default streams are one ordinary stream with a
/// connection of its own.
pub(crate) fn get(handle: usize) -> Outcome<Arc<Stream>> {
    static DEFAULT: Mutex<Option<Arc<Stream>>> = Mutex::new(None);
    if handle > 2 {
        return STREAMS.get(handle);
    }
    context::current()?;
    let mut default = lock(&DEFAULT);
    if let Some(stream) = &*default {
        return Ok(stream.clone());
    }
    let stream = Arc::new(Stream::new(&Arc::default(), 0, 0)?);
    remember(&stream);
    *default = Some(stream.clone());
    Ok(stream)
}

/// Waits for all work of all streams that is queued now.
pub(crate) fn synchronize_all() {
    let streams: Vec<_> = lock(&ALL).iter().filter_map(Weak::upgrade).collect();
    streams.iter().for_each(|stream| stream.synchronize());
}

fn remember(stream: &Arc<Stream>) {
    let mut all = lock(&ALL);
    all.retain(|stream| stream.strong_count() > 0);
    all.push(Arc::downgrade(stream));
}

impl Stream {
    fn new(connection: &Arc<Connection>, flags: u32, priority: i32) -> Outcome<Self> {
        connection.start()?;
        let (queued, complete) = (Mutex::new(0), Mutex::new(0));
        Ok(Self {
            connection: connection.clone(),
            queued,
            complete,
            changed: Condvar::new(),
            flags,
            priority,
        })
    }

    /// Queues work.
    pub(crate) fn push(self: &Arc<Self>, work: Work) {
        let mut queued = lock(&self.queued);
        *queued += 1;
        self.connection.push(Operation { stream: self.clone(), number: *queued, work });
    }

    /// Queues work for the connection's thread.
    pub(crate) fn push_here(self: &Arc<Self>, work: impl FnOnce() + Send + 'static) {
        self.push(Work::Here(Box::new(work)));
    }

    /// Whether all queued work is complete.
    pub(crate) fn is_idle(&self) -> bool {
        let queued = *lock(&self.queued);
        *lock(&self.complete) >= queued
    }

    /// Waits until all work that is queued now is complete.
    pub(crate) fn synchronize(&self) {
        let queued = *lock(&self.queued);
        self.wait(queued);
    }

    fn wait(&self, number: u64) {
        let complete = self.changed.wait_while(lock(&self.complete), |complete| *complete < number);
        drop(complete.unwrap_or_else(PoisonError::into_inner));
    }

    fn finish(&self, number: u64) {
        *lock(&self.complete) = number;
        self.changed.notify_all();
    }
}

struct Operation {
    stream: Arc<Stream>,
    /// Its place in the stream, from 1.
    number: u64,
    work: Work,
}

/// One queue with one thread.
#[derive(Default)]
struct Connection {
    started: Mutex<bool>,
    queue: Mutex<VecDeque<Operation>>,
    filled: Condvar,
}

impl Connection {
    /// Starts its thread if it has none. The thread never ends; the end of the process does not wait for it.
    fn start(self: &Arc<Self>) -> Outcome {
        let mut started = lock(&self.started);
        if !*started {
            let connection = self.clone();
            thread::Builder::new().name("gpu-connection".to_owned()).spawn(move || connection.run())?;
            *started = true;
        }
        Ok(())
    }

    fn push(&self, operation: Operation) {
        lock(&self.queue).push_back(operation);
        self.filled.notify_one();
    }

    fn pop(&self) -> Operation {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(operation) = queue.pop_front() {
                return operation;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self) {
        loop {
            let Operation { stream, number, work } = self.pop();
            stream.wait(number - 1);
            match work {
                Work::Always(work) => work(),
                Work::Here(work) if !context::has_failed() => work(),
                Work::Apart(work) if !context::has_failed() => {
                    run_apart(stream, number, work);
                    continue;
                }
                // A failed context does nothing more.
                Work::Here(_) | Work::Apart(_) => {}
            }
            stream.finish(number);
        }
    }
}

fn run_apart(stream: Arc<Stream>, number: u64, work: Box<dyn FnOnce() + Send>) {
    let launch = stream.clone();
    let run = move || {
        work();
        launch.finish(number);
    };
    if thread::Builder::new().name("gpu-launch".to_owned()).spawn(run).is_err() {
        context::fail(Code::ERROR_OPERATING_SYSTEM);
        stream.finish(number);
    }
}
