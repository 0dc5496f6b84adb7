//! NVSHMEM between processes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod common;
#[path = "common/gpu.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod gpu;

use std::alloc::Layout;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

use common::Process;
use cudarc::driver::CudaContext;
use gpu::get;
use nvshmem_sys::result::stream::{Completion, Signal, Transfer};
use nvshmem_sys::result::{stream as on, team};
use nvshmem_sys::{Error, Nvshmem, Search, Seat, Session, Status, UniqueId};

const DISABLE: &str = "NVSHMEM_DISABLE_LOCAL_ONLY_PROXY";

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
    if words[0] != "proxy" {
        // SAFETY: of the other threads, of the test harness, none uses the environment but through std.
        unsafe { nvshmem.without_proxy() };
    }
    let rank = Rank { nvshmem, folder: words[1].clone(), seat: Seat { pe: number(2), world: number(3) } };
    match words[0].as_str() {
        "ring" => ring(&rank),
        "again" => again(&rank),
        "seat" => drop(rank.start("id")),
        "proxy" | "no-proxy" => leave(&rank),
        "inside" | "abandoned" => leave_a_thread(rank, words[0] == "abandoned"),
        "on-stream" => on_stream(&rank),
        "teams" => teams(&rank),
        "one-gpu" => one_gpu(&rank),
        "not-simulated" => not_simulated(&rank),
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
        // SAFETY: the block has room for a word, and is the host's too.
        let came = unsafe { AtomicU64::from_ptr(two.as_ptr().cast()) };
        thread::sleep(Duration::from_millis(40 * u64::from(rank.seat.pe)));
        gpu::set(came, 1);
        // SAFETY: as before; nothing uses it.
        unsafe { session.free(one) };
        // Nobody's call returns before all come.
        assert_eq!(get(peer(&session, came, 1 - rank.seat.pe)), 1);
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

/// As the real library's thread reads memory that the driver's exit handlers unmap.
#[test]
fn whoever_exits_without_finalize_dies_unless_there_is_no_proxy() {
    let size = ("NVSHMEM_SYMMETRIC_SIZE", "1M");
    let end = |case: &str, variables: &[_]| {
        let (_folder, mut processes) = world(case, &[(0, 1)], variables);
        processes.remove(0).end()
    };
    // By default; and when a user wants the thread, or a transport that brings it.
    let wanted =
        [("proxy", None), ("no-proxy", Some(DISABLE)), ("no-proxy", Some("NVSHMEM_REMOTE_TRANSPORT"))];
    for (case, name) in wanted {
        let variables: Vec<_> = name.map(|name| (name, "0")).into_iter().chain([size]).collect();
        let end = end(case, &variables);
        assert!(!end.status.success() && end.text.contains("while the proxy thread runs"), "{}", end.text);
    }
    let ends = [
        end("no-proxy", &[size]),
        end("proxy", &[size, (DISABLE, "1"), ("NVSHMEM_REMOTE_TRANSPORT", "none")]),
    ];
    for end in ends {
        assert!(end.status.success(), "{}", end.text);
    }
}

fn leave(rank: &Rank) {
    let _context = CudaContext::new(0).unwrap();
    // A session that is dropped is not ended.
    _ = rank.start("id");
}

#[test]
fn whoever_exits_beside_a_thread_in_the_start_dies_unless_it_is_abandoned() {
    let end = |case: &str| {
        let (_folder, mut processes) = world(case, &[(0, 2)], &[]);
        processes.remove(0).end()
    };
    let inside = end("inside");
    assert!(!inside.status.success() && inside.text.contains("while a thread is in"), "{}", inside.text);
    let abandoned = end("abandoned");
    assert!(abandoned.status.success(), "{}", abandoned.text);
}

/// The other rank never comes.
fn leave_a_thread(rank: Rank, is_abandoned: bool) {
    let nvshmem = rank.nvshmem;
    thread::spawn(move || rank.start("id"));
    thread::sleep(Duration::from_millis(300));
    if is_abandoned {
        nvshmem.abandon();
    }
}

#[test]
fn puts_gets_signals_and_barriers_run_in_streams() {
    all("on-stream", 3, &[("NVSHMEM_SYMMETRIC_SIZE", "1M")]);
}

fn on_stream(rank: &Rank) {
    let Seat { pe, world } = rank.seat;
    let context = CudaContext::new(0).unwrap();
    let session = rank.start("id");
    let (api, stream) = (session.api(), gpu::stream(&context));
    let queue = stream.cu_stream().cast();
    let words = block(&session, 64);
    let (inbox, source, got, signal) = (&words[0], &words[8], &words[16], &words[32]);
    let next = i32::try_from((pe + 1) % world).unwrap();
    let before = u64::from((pe + world - 1) % world);
    for round in 1..=50_u64 {
        let completion = if round % 2 == 0 { Completion::InOrder } else { Completion::AtQuiet };
        let transfer = |dest: &AtomicU64, source: &AtomicU64| {
            let (dest, source) = (dest.as_ptr().cast(), source.as_ptr().cast());
            Transfer { dest, source, bytes: 8, pe: next }
        };
        gpu::write(&stream, source, round * 10 + u64::from(pe));
        let set = Signal { word: signal.as_ptr(), value: round };
        // SAFETY: words of the heap, a rank, a live stream; here and below.
        unsafe { on::put_signal(api, transfer(inbox, source), set, completion, queue) };
        // SAFETY: as before.
        unsafe { on::wait(api, set, queue) };
        // SAFETY: as before.
        unsafe { on::barrier_all(api, queue) };
        // What the next rank got is what I sent.
        // SAFETY: as before.
        unsafe { on::get(api, transfer(got, inbox), completion, queue) };
        // SAFETY: as before.
        unsafe { on::quiet(api, queue) };
        // SAFETY: as before.
        unsafe { on::sync_all(api, queue) };
        stream.synchronize().unwrap();
        assert_eq!([get(inbox), get(got)], [round * 10 + before, round * 10 + u64::from(pe)]);
        barrier(&session);
    }
}

#[test]
fn teams_have_numbers_and_barriers_of_their_own() {
    all("teams", 5, &[("NVSHMEM_SYMMETRIC_SIZE", "1M")]);
}

fn teams(rank: &Rank) {
    let pe = i32::try_from(rank.seat.pe).unwrap();
    let _context = CudaContext::new(0).unwrap();
    let session = rank.start("id");
    let (api, words) = (session.api(), block(&session, 8));
    // Ranks 0, 2, 4; then the last two of them.
    let odd = team::Strided { start: 0, stride: 2, size: 3 };
    // SAFETY: all ranks split.
    let outer = unsafe { team::split_strided(api, 0, odd) }.unwrap();
    assert_eq!(outer.is_some(), pe % 2 == 0);
    let Some(outer) = outer else { return barrier(&session) };
    // SAFETY: the team lives, here and below.
    assert_eq!(unsafe { team::my_pe(api, outer) }, Some(pe / 2));
    // SAFETY: as before.
    assert_eq!(unsafe { team::n_pes(api, outer) }, Some(3));
    // SAFETY: as before.
    assert_eq!(unsafe { team::translate_pe(api, outer, 1, 0) }, Some(2));
    // SAFETY: as before.
    assert_eq!(unsafe { team::translate_pe(api, 0, 3, outer) }, None);
    let last = team::Strided { start: 1, stride: 1, size: 2 };
    // SAFETY: all ranks of the parent split.
    let inner = unsafe { team::split_strided(api, outer, last) }.unwrap();
    assert_eq!(inner.is_some(), pe > 0);
    if let Some(inner) = inner {
        for round in 1..=20 {
            gpu::set(peer(&session, &words[0], if pe == 2 { 4 } else { 2 }), round);
            // SAFETY: both ranks of the team come.
            unsafe { team::sync(api, inner) }.unwrap();
            assert_eq!(get(&words[0]), round);
            // SAFETY: as before.
            unsafe { team::barrier(api, inner) }.unwrap();
        }
        // SAFETY: nothing uses it any more.
        unsafe { team::destroy(api, inner) };
        // SAFETY: a team that is gone has no ranks.
        assert_eq!(unsafe { team::my_pe(api, inner) }, None);
    }
    barrier(&session);
}

#[test]
fn several_ranks_on_one_gpu_have_limits() {
    let variables = [("NVSHMEM_SYMMETRIC_SIZE", "1M"), ("GPU_SIM_ONE_GPU", "1")];
    let (_folder, processes) = world("one-gpu", &[(0, 2), (1, 2)], &variables);
    let ends: Vec<_> = processes.into_iter().map(Process::end).collect();
    assert!(ends.iter().all(|end| end.status.code() == Some(255) && end.text.contains("needs MPS")));
}

fn one_gpu(rank: &Rank) {
    let context = CudaContext::new(0).unwrap();
    assert!(context.uuid().unwrap().bytes[8..].iter().all(|byte| *byte == 0));
    let session = rank.start("id");
    assert_eq!(rank.nvshmem.status(), Status::LimitedSharing);
    let (words, stream) = (block(&session, 1), gpu::stream(&context));
    let set = Signal { word: words[0].as_ptr(), value: 0 };
    // SAFETY: a word of the heap and a live stream.
    unsafe { on::wait(session.api(), set, stream.cu_stream().cast()) };
}

#[test]
fn what_is_not_simulated_says_so_and_aborts() {
    let variables = [("NVSHMEM_SYMMETRIC_SIZE", "1M")];
    let (_folder, mut processes) = world("not-simulated", &[(0, 1)], &variables);
    let end = processes.remove(0).end();
    assert!(
        !end.status.success() && end.text.contains("nvshmemx_buffer_register_symmetric is not simulated")
    );
}

fn not_simulated(rank: &Rank) {
    let _context = CudaContext::new(0).unwrap();
    let session = rank.start("id");
    // SAFETY: it ends the process.
    unsafe { (session.api().nvshmemx_buffer_register_symmetric)(std::ptr::null_mut(), 0, 0) };
}
