//! What goes wrong between processes: killed ones, ranks that do not fit together, missing libraries and devices.
//!
//! A test that starts ranks has a twin that is one rank; it is ignored, so that only its own start runs it.
#![cfg(not(any(loom, shuttle)))]
#![expect(unsafe_code, reason = "sources are device addresses")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "processes/mod.rs"]
mod processes;

use std::time::{Duration, Instant};

use processes::{LONG, Part, Rank, expect_success, gpus, join, part, start};
use symm_buffer::nvshmem::{NvshmemConfig, NvshmemFabric, NvshmemWorld, Ordinal, Search};
use symm_buffer::rendezvous::{Launch, Launcher, Place, Refusal, Seat, Terms, Token};
use symm_buffer::{
    Bytes, Copy2d, Corner, Epoch, Error, Fabric, Label, Pe, Post, Put, SignalId, Span, Step, Use, Wait, World,
};

/// For the news of a death to reach everybody; far less than [`LONG`].
const PROMPT: Duration = Duration::from_secs(10);

fn wait_for(fabric: &NvshmemFabric, peer: Pe, signal: SignalId, step: u32) -> Wait {
    let at_least = Epoch::new(fabric.incarnation(), Use(0), Step(step)).unwrap();
    Wait { signal, at_least, peer, label: Label { stage: "fault", piece: 0 } }
}

/// Starts a job of the twin of `test`.
fn job(test: &str, ranks: u32, kind: u32) -> Vec<Rank> {
    start(&format!("{test}_rank"), ranks, kind, &[])
}

fn await_word(ranks: &[Rank], word: &str) {
    let limit = Instant::now() + LONG;
    while !ranks.iter().all(|rank| rank.said().contains(word)) {
        let said: Vec<String> = ranks.iter().map(Rank::said).collect();
        assert!(Instant::now() < limit, "{said:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Twenty times a process is killed in the middle of waits; all others end in time and name it, and nobody is left.
#[test]
fn a_killed_process_is_named_by_all_others() {
    for round in 0..20 {
        let mut ranks = job("a_killed_process_is_named_by_all_others", 2 + round % 2, round);
        await_word(&ranks, "waiting");
        let mut victim = ranks.pop().unwrap();
        victim.child.kill().unwrap();
        let killed = Instant::now();
        expect_success(ranks);
        assert!(killed.elapsed() < PROMPT, "round {round}: {:.1?}", killed.elapsed());
    }
}

#[test]
#[ignore = "is started by its twin"]
fn a_killed_process_is_named_by_all_others_rank() {
    let Some(part) = part() else { return };
    let fabric = join(&part, LONG).unwrap().fabric(LONG).unwrap();
    let victim = Pe(part.ranks - 1);
    let signal = fabric.alloc_signals(2, LONG).unwrap();
    let stream = fabric.stream("waits").unwrap();
    fabric.wait_on(&stream, wait_for(&fabric, victim, SignalId(signal.0 + 1), 1), LONG).unwrap();
    println!("waiting");
    let lost = |what: &str, error: Error| match error {
        Error::Lost { peer, .. } => assert_eq!(peer, victim, "{what}"),
        Error::Missing { missing, .. } => assert_eq!(missing, victim, "{what}"),
        other => panic!("{what}: {other:?}"),
    };
    // Every other job waits in a collective instead.
    match part.job % 4 < 2 && fabric.me() != victim {
        true => lost("barrier", fabric.barrier(LONG).unwrap_err()),
        false => lost("wait", fabric.wait(wait_for(&fabric, victim, signal, 1), LONG).unwrap_err()),
    }
    lost("synchronize", fabric.synchronize(&stream, LONG).unwrap_err());
    lost("status", fabric.status().unwrap_err());
    let put = Put { to: fabric.me(), copies: &[], post: None };
    lost("put_signal", fabric.put_signal(&stream, put).unwrap_err());
    lost("recover", fabric.recover(PROMPT).unwrap_err());
    lost("close", fabric.close(PROMPT).unwrap_err());
}

/// Budget of the ranks in the next test, for the rendezvous and again for NVSHMEM.
const START: Duration = Duration::from_secs(4);

/// A process is killed at any moment of NVSHMEM's own collectives, which have no deadline: its start, and the making and giving
/// back of memory. All others end in time, and name it.
#[test]
fn a_process_killed_inside_nvshmem_is_named_by_all_others() {
    // When, in milliseconds. The simulated driver is told to take 400 for NVSHMEM's start; with a GPU that takes a second
    // and more. Memory is made and given back after it.
    let times = match gpus() {
        0 => [0, 5, 20, 80, 160, 320, 600, 640, 700],
        _ => [0, 300, 400, 500, 600, 700, 800, 1500, 2000],
    };
    let variables = [("GPU_SIM_START_MS", "400"), ("GPU_SIM_POISON", "0")];
    let mut inside = 0;
    for (round, time) in (0..).zip(times) {
        let twin = "a_process_killed_inside_nvshmem_is_named_by_all_others_rank";
        let mut ranks = start(twin, 2 + round % 2, round, &variables);
        await_word(&ranks, "starting");
        std::thread::sleep(Duration::from_millis(time));
        let mut victim = ranks.pop().unwrap();
        victim.child.kill().unwrap();
        let killed = Instant::now();
        let said = expect_success(ranks);
        assert!(killed.elapsed() < 3 * START, "round {round}: {:.1?}", killed.elapsed());
        let told = said.iter().flat_map(|said| said.lines()).filter(|line| line.starts_with("ended"));
        told.for_each(|line| println!("{time} ms: {line}"));
        inside += u32::from(said.iter().any(|said| said.contains("meet: the process of rank")));
    }
    println!("{inside} of {} were killed in NVSHMEM's start", times.len());
    assert!(inside > 0);
}

#[test]
#[ignore = "is started by its twin"]
fn a_process_killed_inside_nvshmem_is_named_by_all_others_rank() {
    let Some(part) = part() else { return };
    println!("starting");
    let begun = Instant::now();
    let error = work_until_it_fails(&part).unwrap_err();
    println!("ended after {:.1?}: {error}", begun.elapsed());
    let victim = part.ranks - 1;
    let named = match &error {
        Error::Lost { peer, .. } | Error::Missing { missing: peer, .. } => *peer == Pe(victim),
        Error::Aborted { report, .. } => report.peer == Pe(victim),
        // Its refusal may be rank 0's, in words.
        Error::Rendezvous { why, .. } => why.to_string().contains(&format!("rank {victim}")),
        _ => false,
    };
    assert!(named, "{error:?}");
    // NVSHMEM may be at its start for ever: nobody waits for it again.
    let again = Instant::now();
    _ = join(&part, START / 10).map(drop);
    assert!(again.elapsed() < START);
}

fn work_until_it_fails(part: &Part) -> Result<(), Error> {
    /// More than a chunk: each is made and given back by NVSHMEM.
    const REGION: Bytes = Bytes(65 << 20);
    let fabric = join(part, START)?.fabric(START)?;
    loop {
        let region = fabric.alloc(REGION, START)?;
        fabric.free(region, START)?;
    }
}

/// Ranks that would make NVSHMEM end the process are refused by the rendezvous before it starts, with a typed error.
#[test]
fn ranks_that_do_not_fit_are_refused_before_nvshmem_starts() {
    for kind in 0..3 {
        expect_success(job("ranks_that_do_not_fit_are_refused_before_nvshmem_starts", 3, kind));
    }
}

#[test]
#[ignore = "is started by its twin"]
fn ranks_that_do_not_fit_are_refused_before_nvshmem_starts_rank() {
    let Some(part) = part() else { return };
    let odd = part.rank == 2;
    let told = match part.job {
        // Two of one number.
        0 if odd => Part { rank: 1, ..part.clone() },
        // Another world.
        1 if odd => Part { ranks: 4, ..part.clone() },
        // One does not come.
        _ => part.clone(),
    };
    if part.job == 2 && odd {
        return;
    }
    let seat = Seat::new(Pe(told.rank), World::new(told.ranks).unwrap()).unwrap();
    let place = Place { host: "127.0.0.1".to_owned(), port: told.port, bind: None };
    let terms = Terms::new(Token::new("test").unwrap(), Vec::new()).unwrap();
    let device = (Ordinal(0), NvshmemConfig::default());
    let error = NvshmemWorld::meet(seat, &place, &terms, device, Duration::from_secs(3)).unwrap_err();
    let Error::Rendezvous { why, .. } = error else { panic!("{error}") };
    match part.job {
        0 => assert!(matches!(*why, Refusal::Duplicate { rank: Pe(1) }), "{why}"),
        1 => assert!(matches!(*why, Refusal::World { .. }), "{why}"),
        // Rank 0's deadline may be over before rank 1 asks.
        _ => assert!(why.to_string().contains("rank 2") || why.to_string().contains("rank 0"), "{why}"),
    }
}

/// A process starts and ends NVSHMEM again and again, also with other worlds.
#[test]
fn nvshmem_starts_and_ends_twenty_times_with_changing_worlds() {
    expect_success(job("nvshmem_starts_and_ends_twenty_times_with_changing_worlds", 3, 0));
}

#[test]
#[ignore = "is started by its twin"]
fn nvshmem_starts_and_ends_twenty_times_with_changing_worlds_rank() {
    let Some(part) = part() else { return };
    for round in 0..20_u16 {
        let ranks = [3, 2, 3, 1][usize::from(round % 4)];
        if part.rank >= ranks {
            continue;
        }
        let port = part.port.checked_add(round % 4 * 100).unwrap();
        let world = join(&Part { ranks, port, ..part.clone() }, LONG).unwrap();
        let fabric = world.fabric(LONG).unwrap();
        pass_on(&fabric);
        let second = world.fabric(LONG).unwrap();
        let busy = world.clone().finalize(LONG).unwrap_err();
        assert!(matches!(busy, Error::InUse { .. }), "{busy}");
        pass_on(&second);
        second.close(LONG).unwrap();
        pass_on(&fabric);
        fabric.close(LONG).unwrap();
        world.finalize(LONG).unwrap();
    }
}

/// A job of five is split into groups of two, whose worlds begin, work and end at one time, each with its own last word.
#[test]
fn groups_of_a_job_are_worlds_of_their_own() {
    expect_success(job("groups_of_a_job_are_worlds_of_their_own", 5, 0));
}

/// NVSHMEM cannot tell two worlds apart whose ranks share a GPU; so the second begins when the first has ended.
#[test]
fn groups_whose_ranks_share_a_gpu_come_one_after_the_other() {
    for _ in 0..3 {
        let variables = [("GPU_SIM_ONE_GPU", "1")];
        expect_success(start("groups_of_a_job_are_worlds_of_their_own_rank", 5, 0, &variables));
    }
}

#[test]
#[ignore = "is started by its twin"]
fn groups_of_a_job_are_worlds_of_their_own_rank() {
    let Some(part) = part() else { return };
    let launch = Launch {
        seat: Seat::new(Pe(part.rank), World::new(part.ranks).unwrap()).unwrap(),
        local: part.rank,
        place: Place { host: "127.0.0.1".to_owned(), port: part.port, bind: None },
        token: Token::new("a split job").unwrap(),
        by: Launcher::Torchrun,
    };
    // Strided and in another order than the job's: what tensor parallelism leaves for a sequence.
    let ranks = [&[0, 2][..], &[3, 1], &[0, 2], &[3, 1], &[4]][part.rank as usize];
    let ranks: Vec<Pe> = ranks.iter().copied().map(Pe).collect();
    let group = launch.part(&ranks).unwrap();
    assert_eq!(ranks[group.seat.me().index()], Pe(part.rank));
    let terms = Terms::new(group.token, Vec::new()).unwrap();
    let device = Ordinal(group.local as usize % gpus().max(1));
    let config = (device, NvshmemConfig::default());
    let world = NvshmemWorld::meet(group.seat, &group.place, &terms, config, LONG).unwrap();
    let fabric = world.fabric(LONG).unwrap();
    assert_eq!(fabric.world().size(), ranks.len());
    pass_on(&fabric);
    fabric.close(LONG).unwrap();
    world.finalize(LONG).unwrap();
}

/// Everybody sends to the next, twice as much as the heap's first chunk in all.
fn pass_on(fabric: &NvshmemFabric) {
    const LEN: usize = 48 << 20;
    let (me, world) = (fabric.me(), fabric.world());
    let next = world.after(me).next().unwrap_or(me);
    let previous = world.before(me).next().unwrap_or(me);
    let regions = [0, 1].map(|_| fabric.alloc(Bytes(LEN), LONG).unwrap());
    let signal = fabric.alloc_signals(1, LONG).unwrap();
    let stream = fabric.stream("pass").unwrap();
    let message = |pe: Pe| [pe.0.to_le_bytes(); 25].concat();
    let end = |region| Span { region, offset: LEN - 100, len: 100 };
    fabric.store(end(regions[0]), &message(me)).unwrap();
    let corner = |region| Corner { region, offset: LEN - 100, pitch: 100 };
    let copy = Copy2d { src: corner(regions[0]), dst: corner(regions[1]), width: 100, rows: 1 };
    let wait = wait_for(fabric, previous, signal, 1);
    let post = Some(Post { signal, value: wait.at_least });
    fabric.put_signal(&stream, Put { to: next, copies: &[copy], post }).unwrap();
    fabric.wait(wait, LONG).unwrap();
    assert_eq!(fabric.load(end(regions[1])).unwrap(), message(previous));
    fabric.synchronize(&stream, LONG).unwrap();
    for region in regions {
        fabric.free(region, LONG).unwrap();
    }
}

/// A machine without the library, without the driver or without the device says so, at once.
#[test]
fn what_is_missing_is_named() {
    let seat = Seat::new(Pe(0), World::new(1).unwrap()).unwrap();
    let place = Place { host: "127.0.0.1".to_owned(), port: 1, bind: None };
    let terms = Terms::new(Token::new("test").unwrap(), Vec::new()).unwrap();
    let nowhere = tempfile::tempdir().unwrap();
    let config = NvshmemConfig { search: Search::only(nowhere.path()), ..NvshmemConfig::default() };
    let meet = |device| NvshmemWorld::meet(seat, &place, &terms, device, PROMPT).unwrap_err();
    let error = meet((Ordinal(0), config));
    assert!(matches!(error, Error::Nvshmem(nvshmem_sys::Error::NotFound { .. })), "{error}");
    // With neither library nor driver the first of them is named.
    let error = meet((Ordinal(10_000), NvshmemConfig::default()));
    assert!(matches!(error, Error::Nvshmem(_) | Error::Driver { .. }), "{error}");
    assert!(gpus() == 0 || matches!(error, Error::Driver { .. }), "{error}");
}

/// A rank that is only late is recovered with, and the words go on.
#[test]
fn a_slow_process_is_recovered_with() {
    expect_success(job("a_slow_process_is_recovered_with", 3, 0));
}

#[test]
#[ignore = "is started by its twin"]
fn a_slow_process_is_recovered_with_rank() {
    const SHORT: Duration = Duration::from_millis(100);
    let Some(part) = part() else { return };
    let fabric = join(&part, LONG).unwrap().fabric(LONG).unwrap();
    let slow = Pe(1);
    for _ in 0..5 {
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let stream = fabric.stream("late").unwrap();
        let wait = wait_for(&fabric, slow, signal, 1);
        if fabric.me() == slow {
            std::thread::sleep(4 * SHORT);
            // Those who have given up wait for it in their recovery.
            assert!(fabric.status().is_err());
        } else {
            fabric.wait_on(&stream, wait, SHORT).unwrap();
            let error = fabric.synchronize(&stream, LONG).unwrap_err();
            let told = match error {
                Error::Timeout(report) | Error::Aborted { report, .. } => report,
                other => panic!("{other:?}"),
            };
            assert_eq!((told.peer, told.signal, told.label.stage), (slow, signal, "fault"));
        }
        let before = fabric.incarnation();
        assert_eq!(fabric.recover(LONG).unwrap().0, before.0 + 1);
        fabric.status().unwrap();
        pass_on(&fabric);
    }
    fabric.close(LONG).unwrap();
}
