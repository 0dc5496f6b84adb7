//! The state of the library in this process.
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

use super::control::{self, Control, MAX_PES, UniqueId, Waiter};
use super::give_up;
use super::heap::{Heap, Offer};
use super::team::Team;
use crate::table::lock;
use crate::{config, context};

static WORLD: Mutex<Option<Arc<World>>> = Mutex::new(None);

/// What stands for the segment of ranks that share a GPU, which rank 0 makes. As in NVSHMEM its name knows nothing of the
/// world; here it has the parent's number, so that tests which run at one time do not meet.
static SEGMENT: Mutex<Option<UnixListener>> = Mutex::new(None);

/// The ranks, me among them.
pub(super) struct World {
    pub(super) control: &'static Control,
    /// My number.
    pub(super) me: usize,
    /// How many there are.
    pub(super) count: u32,
    /// Made when a device is current.
    heap: OnceLock<Heap>,
    /// By number; `None` was destroyed, or I am not in it.
    pub(super) teams: Mutex<Vec<Option<Team>>>,
}

/// The world, if ranks have met.
pub(super) fn get() -> Option<Arc<World>> {
    lock(&WORLD).clone()
}

/// The world, for functions that cannot do without.
pub(super) fn needed(call: &str) -> Arc<World> {
    get().unwrap_or_else(|| give_up(&format!("{call} before initialisation")))
}

/// Meets the others, or returns the world of an earlier call.
pub(super) fn meet(id: &UniqueId, me: i32, count: i32) -> io::Result<Arc<World>> {
    if let Some(world) = get() {
        return Ok(world);
    }
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let me = usize::try_from(me).map_err(|_| wrong())?;
    let count = u32::try_from(count).map_err(|_| wrong())?;
    if me >= count as usize || count as usize > MAX_PES {
        return Err(wrong());
    }
    let control = control::open(id)?;
    control.take_seat(me, count);
    std::thread::sleep(config::start_time());
    if config::one_gpu() && count > 1 && me == 0 {
        let made = make_segment().unwrap_or_else(|why| {
            control.fail(&format!("Failed to open shared memory slab: {why}, by another world on this GPU"))
        });
        *lock(&SEGMENT) = Some(made);
    }
    let teams = Mutex::new(Team::first(me, count).into_iter().map(Some).collect());
    let world = Arc::new(World { control, me, count, heap: OnceLock::new(), teams });
    world.barrier();
    *lock(&WORLD) = Some(world.clone());
    Ok(world)
}

/// Ends it, with all ranks.
pub(super) fn end() {
    let Some(world) = get() else { return };
    world.barrier();
    *lock(&WORLD) = None;
    if let Some(heap) = world.heap.get() {
        heap.end();
    }
    world.control.leave_seat(world.me);
    drop(lock(&SEGMENT).take());
    // Whoever starts again with the same id must find my seat free.
    world.barrier();
}

fn make_segment() -> io::Result<UnixListener> {
    let name = format!("gpu-sim mps_shm_0 {}", std::os::unix::process::parent_id());
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

impl World {
    /// Waits for all ranks' host threads.
    pub(super) fn barrier(&self) {
        self.control.meet(0, Waiter::Host, self.count);
    }

    /// The heap, made now if it is not there and a device is current. Collective then.
    pub(super) fn heap(&self) -> Option<&Heap> {
        if self.heap.get().is_none() && context::current().is_ok() {
            let made = self.make_heap().unwrap_or_else(|why| self.control.fail(&format!("no heap: {why}")));
            _ = self.heap.set(made);
        }
        self.heap.get()
    }

    /// The heap if it is there.
    pub(super) fn made_heap(&self) -> Option<&Heap> {
        self.heap.get()
    }

    /// Fails all ranks whose arguments of a collective call differ.
    pub(super) fn agree(&self, call: &str, arguments: [usize; 2]) {
        for (slot, argument) in self.control.seats[self.me].arguments.iter().zip(arguments) {
            slot.store(argument as u64, Ordering::Relaxed);
        }
        self.barrier();
        let next = &self.control.seats[(self.me + 1) % self.count as usize].arguments;
        let theirs = [0, 1].map(|at| next[at].load(Ordering::Relaxed));
        if theirs != arguments.map(|argument| argument as u64) {
            self.control
                .fail(&format!("{call}: ranks differ, {arguments:?} here and {theirs:?} at the next"));
        }
        // Nobody writes the next call's arguments before all have read these.
        self.barrier();
    }

    fn make_heap(&self) -> io::Result<Heap> {
        let offer = Offer::new(&self.control.seats[self.me])?;
        self.barrier();
        let (heap, file) = offer.open(self.control, self.me, self.count as usize)?;
        self.barrier();
        drop(file);
        Ok(heap)
    }
}
