//! The control block that all ranks of a world share: who sits where, and where they wait for each other.
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::give_up;
use super::inside::Inside;
use crate::table::lock;
use crate::{map, word};

/// Ranks of a world.
pub(super) const MAX_PES: usize = 128;

/// Teams that have a number of their own.
pub(super) const MAX_TEAMS: usize = 64;

/// What the first four bytes of a unique id say: layout 1, 128 bytes.
pub(super) const ID_VERSION: i32 = 0x1_0080;

/// `nvshmemx_uniqueid_t`, with what the simulator puts into it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId {
    pub(super) version: i32,
    /// Who made it.
    process: u32,
    /// The control block among that process's files.
    file: i32,
    padding: u32,
    /// The same in the control block: the process may have ended, and another have its number.
    nonce: u64,
    unused: [u8; 104],
}

const _: () = assert!(size_of::<UniqueId>() == 128);

/// The shared block. All zeros is a new one.
#[repr(C)]
pub(super) struct Control {
    nonce: AtomicU64,
    /// Ranks, as the first of them said.
    world: AtomicU32,
    /// Set by a rank that found a mistake: all others give up too.
    broken: AtomicU32,
    /// Teams that were split off so far.
    pub(super) teams: AtomicU32,
    /// Number of the team that is being split off each team.
    pub(super) split: [AtomicU32; MAX_TEAMS],
    pub(super) seats: [Seat; MAX_PES],
    /// One for the hosts' threads and one for streams, per team.
    barriers: [[Barrier; 2]; MAX_TEAMS],
}

/// What a rank says of itself.
#[repr(C)]
pub(super) struct Seat {
    taken: AtomicU32,
    pub(super) process: AtomicU32,
    pub(super) file: AtomicI32,
    pub(super) heap_bytes: AtomicU64,
    /// Arguments of the collective call that it is in.
    pub(super) arguments: [AtomicU64; 2],
}

/// Where ranks wait for each other; used again and again.
#[repr(C)]
struct Barrier {
    arrived: AtomicU32,
    round: AtomicU32,
}

/// Who waits.
#[derive(Clone, Copy)]
pub(super) enum Waiter {
    Host = 0,
    Stream = 1,
}

/// Makes a control block that lives as long as this process.
pub(super) fn create() -> io::Result<UniqueId> {
    static MADE: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let file = map::memory_file("gpu-sim-control", size_of::<Control>())?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let process = std::process::id();
    let nonce = (u64::from(process) << 32) ^ u64::from(since.subsec_nanos()) ^ (since.as_secs() << 20) | 1;
    view(&file)?.nonce.store(nonce, Ordering::Release);
    let id = UniqueId {
        version: ID_VERSION,
        process,
        file: file.as_raw_fd(),
        padding: 0,
        nonce,
        unused: [0; 104],
    };
    lock(&MADE).push(file);
    Ok(id)
}

/// Opens the control block of an id.
pub(super) fn open(id: &UniqueId) -> io::Result<&'static Control> {
    let control = view(&open_of(id.process, id.file)?)?;
    let same = id.nonce != 0 && control.nonce.load(Ordering::Acquire) == id.nonce;
    same.then_some(control).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Opens a file that another process has open.
pub(super) fn open_of(process: u32, file: i32) -> io::Result<File> {
    File::options().read(true).write(true).open(format!("/proc/{process}/fd/{file}"))
}

fn view(file: &File) -> io::Result<&'static Control> {
    if file.metadata()?.len() < size_of::<Control>() as u64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let address = map::shared(file, size_of::<Control>())?;
    // SAFETY: the mapping is as long as the structure, begins at a page and is never unmapped; atomics may have any
    // bytes and be shared with other processes.
    Ok(unsafe { &*(address as *const Control) })
}

impl Control {
    /// Takes a seat. A world of another size and a seat that is taken end this process, and the others.
    pub(super) fn take_seat(&self, me: usize, world: u32) {
        let (first, then) = (Ordering::AcqRel, Ordering::Acquire);
        if let Err(other) = self.world.compare_exchange(0, world, first, then)
            && other != world
        {
            self.fail(&format!("a rank says that the world has {world} ranks, an earlier one said {other}"));
        }
        if self.seats[me].taken.swap(1, Ordering::AcqRel) == 1 {
            self.fail(&format!("two ranks have number {me} of {world}"));
        }
    }

    /// Gives it back, so that the same id can be used once more.
    pub(super) fn leave_seat(&self, me: usize) {
        self.seats[me].taken.store(0, Ordering::Release);
    }

    /// Waits for all `members` of a team. There is no deadline.
    pub(super) fn meet(&self, team: usize, waiter: Waiter, members: u32) {
        let barrier = &self.barriers[team][waiter as usize];
        let round = barrier.round.load(Ordering::Acquire);
        if barrier.arrived.fetch_add(1, Ordering::AcqRel) + 1 == members {
            barrier.arrived.store(0, Ordering::Relaxed);
            barrier.round.store(round.wrapping_add(1), Ordering::Release);
        }
        let broken = || self.broken.load(Ordering::Acquire) == 1;
        // A stream's wait is no thread of the caller's.
        let _inside = matches!(waiter, Waiter::Host).then(Inside::enter);
        word::poll(|| barrier.round.load(Ordering::Acquire) != round || broken());
        if broken() {
            give_up("another rank gave up");
        }
    }

    /// Ends this process, and soon the others.
    pub(super) fn fail(&self, why: &str) -> ! {
        self.broken.store(1, Ordering::Release);
        give_up(why)
    }
}
