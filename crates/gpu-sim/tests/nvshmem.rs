//! NVSHMEM between processes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod common;
#[path = "common/gpu.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod gpu;

use std::alloc::Layout;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use common::Process;
use cudarc::driver::CudaContext;
use nvshmem_sys::{Error, Nvshmem, Search, Seat, Session, Status, UniqueId};

/// What a child was told: its case, where the id lies, its seat.
struct Rank {
    nvshmem: Nvshmem,
    folder: String,
    seat: Seat,
}

#[test]
#[ignore = "is started by the other tests"]
fn child() {
    let words = common::words();
    let number = |at: usize| words[at].parse().unwrap();
    let nvshmem = nvshmem_sys::load(&Search::system()).unwrap();
    let rank = Rank { nvshmem, folder: words[1].clone(), seat: Seat { pe: number(2), world: number(3) } };
    match words[0].as_str() {
        "ring" => ring(&rank),
        "again" => again(&rank),
        "seat" => drop(rank.start("id")),
        other => panic!("no case {other}"),
    }
}

/// Starts ranks of a case; the folder lives as long as they are waited for.
fn world(case: &str, seats: &[(u32, u32)], variables: &[(&str, &str)]) -> (tempfile::TempDir, Vec<Process>) {
    let folder = tempfile::tempdir().unwrap();
    let line = |(pe, world): &(u32, u32)| format!("{case} {} {pe} {world}", folder.path().display());
    let processes = seats.iter().map(|seat| common::start(&line(seat), variables)).collect();
    (folder, processes)
}

fn all(case: &str, count: u32, variables: &[(&str, &str)]) {
    let seats: Vec<_> = (0..count).map(|pe| (pe, count)).collect();
    let (_folder, processes) = world(case, &seats, variables);
    processes.into_iter().for_each(|process| drop(process.succeed()));
}

impl Rank {
    /// The id that rank 0 puts into the folder under this name.
    fn id(&self, name: &str) -> UniqueId {
        let file = Path::new(&self.folder).join(name);
        if self.seat.pe == 0 {
            let part = file.with_extension("part");
            std::fs::write(&part, self.nvshmem.unique_id().unwrap().bytes()).unwrap();
            std::fs::rename(part, &file).unwrap();
        }
        gpu::soon("rank 0 makes an id", || file.exists());
        UniqueId::from_bytes(std::fs::read(file).unwrap().try_into().unwrap()).unwrap()
    }

    fn start(&self, name: &str) -> Session {
        let id = self.id(name);
        // SAFETY: the test starts all ranks, or wants to see the library give up.
        unsafe { self.nvshmem.init(self.seat, &id) }.unwrap()
    }
}

/// Words of a new block of the heap, zeroed.
fn block(session: &Session, count: usize) -> &'static [AtomicU64] {
    // SAFETY: all ranks make the same calls.
    let memory = unsafe { session.alloc(Layout::array::<u64>(count).unwrap()) }.unwrap();
    // SAFETY: the block is as long, aligned, and the host's too; it is used before the end of the session only.
    let words = unsafe { std::slice::from_raw_parts(memory.as_ptr().cast::<AtomicU64>(), count) };
    assert!(words.iter().all(|word| gpu::get(word) == u64::MAX));
    words.iter().for_each(|word| gpu::set(word, 0));
    barrier(session);
    words
}

fn barrier(session: &Session) {
    // SAFETY: all ranks make the same calls.
    unsafe { nvshmem_sys::result::team::barrier_all(session.api()) };
}

/// The same word in a peer's heap.
fn peer<'a>(session: &Session, word: &'a AtomicU64, pe: u32) -> &'a AtomicU64 {
    let address = std::ptr::NonNull::new(word.as_ptr()).unwrap().cast();
    let there = session.peer_address(address, pe).unwrap().unwrap();
    // SAFETY: it is a word of the peer's heap.
    unsafe { AtomicU64::from_ptr(there.as_ptr().cast()) }
}

#[test]
fn ranks_put_data_and_signals_into_each_others_heaps() {
    [1, 2, 3, 8].into_iter().for_each(|count| all("ring", count, &[("NVSHMEM_SYMMETRIC_SIZE", "16M")]));
}

fn ring(rank: &Rank) {
    let Seat { pe, world } = rank.seat;
    let context = CudaContext::new(0).unwrap();
    let session = rank.start("id");
    assert_eq!(rank.nvshmem.status(), Status::Initialized);
    let words = block(&session, 1024);
    let (inbox, outbox, signal) = (&words[..100], &words[100..200], &words[300]);
    let stream = gpu::stream(&context);
    let next = (pe + 1) % world;
    for round in 1..=20_u64 {
        outbox
            .iter()
            .zip(0_u64..)
            .for_each(|(word, at)| gpu::set(word, round * 1000 + u64::from(pe) * 100 + at));
        let there = gpu::at(peer(&session, &inbox[0], next));
        gpu::copy(&stream, there, gpu::at(&outbox[0]), 800);
        gpu::write(&stream, peer(&session, signal, next), round);
        gpu::wait(&stream, signal, round);
        stream.synchronize().unwrap();
        let before = u64::from((pe + world - 1) % world);
        assert!(inbox.iter().zip(0..).all(|(word, at)| gpu::get(word) == round * 1000 + before * 100 + at));
        barrier(&session);
    }
    // SAFETY: all ranks are past their last use of the heap, and all come here.
    unsafe { session.finalize() };
    assert_eq!(rank.nvshmem.status(), Status::NotInitialized);
}

#[test]
fn the_library_starts_and_ends_twice_and_the_heap_fills_up() {
    all("again", 2, &[("NVSHMEM_SYMMETRIC_SIZE", "1M")]);
}

fn again(rank: &Rank) {
    let id = rank.id("first");
    // SAFETY: both ranks come.
    let error = unsafe { rank.nvshmem.init(rank.seat, &id) }.unwrap_err();
    assert!(matches!(error, Error::NoDevice { .. }), "{error}");
    assert_eq!(rank.nvshmem.status(), Status::Bootstrapped);
    let _context = CudaContext::new(0).unwrap();
    // Once more with the same id, now with a device; then with an id of its own.
    for id in [id, rank.id("second")] {
        // SAFETY: both ranks come.
        let session = unsafe { rank.nvshmem.init(rank.seat, &id) }.unwrap();
        let (half, more) = (Layout::from_size_align(1 << 19, 1024).unwrap(), Layout::new::<[u8; 1025]>());
        // SAFETY: both ranks make the same calls, here and below.
        let [one, two] = [half; 2].map(|half| unsafe { session.alloc(half) }.unwrap());
        // SAFETY: as before.
        let full = unsafe { session.alloc(more) };
        assert!(matches!(full, Err(Error::NoMemory { .. })));
        // SAFETY: as before; nothing uses it.
        unsafe { session.free(one) };
        // SAFETY: as before.
        assert_eq!(unsafe { session.alloc(more) }.unwrap(), one);
        assert_ne!(one, two);
        // SAFETY: as before.
        unsafe { session.finalize() };
    }
}

#[test]
fn two_ranks_of_one_number_and_worlds_that_differ_end_all_processes() {
    for (seats, why) in
        [([(0, 3), (1, 3), (1, 3)], "have number 1"), ([(0, 2), (1, 3), (2, 3)], "the world has")]
    {
        let (begin, variables) = (Instant::now(), [("NVSHMEM_SYMMETRIC_SIZE", "1M")]);
        let (_folder, processes) = world("seat", &seats, &variables);
        let ends: Vec<_> = processes.into_iter().map(Process::end).collect();
        assert!(ends.iter().all(|end| end.status.code() == Some(255)), "{}", ends[0].text);
        assert!(ends.iter().any(|end| end.text.contains(why)), "{}", ends[1].text);
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
