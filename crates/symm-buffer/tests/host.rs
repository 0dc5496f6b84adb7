//! The host backend in good weather: real asynchrony, an honest link, sources, in-place access, threads.
#![cfg(not(loom))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod common;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use common::{LONG, PROMPT, copy, ms, post, run, span, wait_for};
use symm_buffer::{
    Bytes, Copy2d, Error, Fabric, Pe, Put, SignalId, SrBuffer, World,
    host::{self, HostConfig, Link},
    layout::Part,
};

fn with_link(bytes_per_second: f64, latency_ms: u64) -> HostConfig {
    HostConfig { link: Some(Link { bytes_per_second, latency: ms(latency_ms) }), ..HostConfig::default() }
}

#[test]
fn a_put_returns_long_before_it_arrives() {
    run(2, with_link(1e7, 0), |fabric| {
        let region = fabric.alloc(Bytes(2_000_000), LONG).unwrap();
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        let there = post(&fabric, signal, 1);
        fabric.barrier(LONG).unwrap();
        if fabric.me() == Pe(1) {
            assert!(fabric.wait(wait_for(0, there), LONG).unwrap() > ms(100));
            return;
        }
        let began = Instant::now();
        // 2 MB at 10 MB/s: 200 ms.
        let copies = &[copy(span(region, 0, 2_000_000), region, 0)];
        fabric.put_signal(&push, Put { to: Pe(1), copies, post: Some(there) }).unwrap();
        fabric.wait_on(&push, wait_for(0, post(&fabric, signal, 0)), LONG).unwrap();
        let queued = began.elapsed();
        // Meanwhile this thread computes.
        let mut sum = 0_u64;
        while began.elapsed() < ms(50) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        let blocked = fabric.synchronize(&push, LONG).unwrap();
        let took = began.elapsed();
        assert!(took >= ms(200) && took < PROMPT, "{took:?}");
        assert!(queued < took / 4, "queueing took {queued:?} of {took:?}");
        assert!(blocked < took - ms(45), "the work of 50 ms did not overlap: {blocked:?} of {took:?}");
    });
}

/// Bytes that one rank sends in [`seconds_to_send`].
const SENT: usize = 12_000_000;

/// How long 12 MB in 60 puts take at 80 MB/s, spread over some streams: 0.15 s.
fn seconds_to_send(streams: usize) -> f64 {
    let times = run(2, with_link(8e7, 2), |fabric| {
        let region = fabric.alloc(Bytes(SENT), LONG).unwrap();
        let first = fabric.alloc_signals(2, LONG).unwrap();
        let lanes: Vec<_> = (0..streams).map(|_| fabric.stream("lane").unwrap()).collect();
        fabric.barrier(LONG).unwrap();
        let began = Instant::now();
        if fabric.me() == Pe(0) {
            let len = SENT / 60;
            for index in 0..60 {
                let copies = &[copy(span(region, index * len, len), region, index * len)];
                let put = Put { to: Pe(1), copies, post: None };
                fabric.put_signal(&lanes[index % streams], put).unwrap();
            }
            for lane in &lanes {
                fabric.synchronize(lane, LONG).unwrap();
            }
        }
        let took = began.elapsed();
        assert_eq!(fabric.seen(first).unwrap().0, 0);
        took.as_secs_f64()
    });
    times[0]
}

#[test]
fn the_link_keeps_its_rate_and_streams_share_it() {
    let ideal = 12e6 / 8e7 + 0.002;
    for streams in [1, 2] {
        // A busy machine can only make it slower: the best of some tries counts.
        let tries = (0..4).map(|_| seconds_to_send(streams));
        let best = tries.inspect(|took| assert!(*took >= ideal - 1e-4, "{took}")).fold(f64::MAX, f64::min);
        assert!(best < 1.15 * ideal, "{streams} streams: {best} s instead of {ideal} s");
    }
}

#[test]
fn latency_is_paid_once_by_puts_in_flight_together() {
    run(2, with_link(1e12, 40), |fabric| {
        let region = fabric.alloc(Bytes(128), LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        let began = Instant::now();
        for _ in 0..50 {
            let copies = &[copy(span(region, 0, 64), region, 64)];
            let to = Pe(1 - fabric.me().0);
            fabric.put_signal(&push, Put { to, copies, post: None }).unwrap();
        }
        fabric.synchronize(&push, LONG).unwrap();
        let took = began.elapsed();
        assert!(took >= ms(40) && took < ms(1000), "50 puts with 40 ms each took {took:?}");
    });
}

#[test]
fn a_posted_signal_is_seen_within_microseconds() {
    const TURNS: u32 = 500;
    let took = run(2, HostConfig::default(), |fabric| {
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        let peer = 1 - fabric.me().0;
        fabric.barrier(LONG).unwrap();
        let began = Instant::now();
        for turn in 1..=TURNS {
            let there = post(&fabric, signal, turn);
            if fabric.me() == Pe(1) {
                fabric.wait(wait_for(peer, there), LONG).unwrap();
            }
            let put = Put { to: Pe(peer), copies: &[], post: Some(there) };
            fabric.put_signal(&push, put).unwrap();
            if fabric.me() == Pe(0) {
                fabric.wait(wait_for(peer, there), LONG).unwrap();
            }
        }
        began.elapsed() / (2 * TURNS)
    });
    println!("one way, queue to wake-up: {took:?}");
    // Some 20 us on an idle machine; much more means that somebody sleeps instead of being woken.
    assert!(took[0] < ms(2), "{took:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_waiting_rank_leaves_the_core_to_others() {
    let cpu_ns = || -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    run(2, HostConfig::default(), |fabric| {
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        let there = post(&fabric, signal, 1);
        if fabric.me() == Pe(0) {
            thread::sleep(ms(300));
            fabric.put_signal(&push, Put { to: Pe(1), copies: &[], post: Some(there) }).unwrap();
            return;
        }
        let before = cpu_ns();
        let waited = fabric.wait(wait_for(0, there), LONG).unwrap();
        let burnt = cpu_ns() - before;
        assert!(waited > ms(200) && burnt < 10_000_000, "burnt {burnt} ns of {waited:?}");
    });
}

#[test]
fn a_source_scope_ends_after_its_puts() {
    run(2, with_link(1e7, 0), |fabric| {
        let region = fabric.alloc(Bytes(1_000_000), LONG).unwrap();
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        let (there, to) = (post(&fabric, signal, 1), Pe(1 - fabric.me().0));
        fabric.barrier(LONG).unwrap();
        let began = Instant::now();
        let mut data = vec![7_u8; 1_000_000];
        let id = fabric.with_sources(&[&data], |ids| {
            let copies = &[copy(span(ids[0], 0, data.len()), region, 0)];
            fabric.put_signal(&push, Put { to, copies, post: Some(there) }).unwrap();
            ids[0]
        });
        assert!(began.elapsed() >= ms(100), "the scope ended while the link still read");
        data.fill(8);
        fabric.wait(wait_for(to.0, there), LONG).unwrap();
        assert!(fabric.load(span(region, 0, 1_000_000)).unwrap().iter().all(|byte| *byte == 7));
        let copies = &[copy(span(id, 0, 1), region, 0)];
        let after = fabric.put_signal(&push, Put { to, copies, post: None });
        assert!(matches!(after, Err(Error::UnknownRegion { .. })), "{after:?}");
        assert!(matches!(fabric.load(span(id, 0, 1)), Err(Error::UnknownRegion { .. })));
    });
}

#[test]
fn memory_is_used_in_place_as_any_aligned_type() {
    run(1, HostConfig::default(), |fabric| {
        let region = fabric.alloc(Bytes(1000), LONG).unwrap();
        {
            let fresh = fabric.read(span(region, 0, 1000)).unwrap();
            assert_eq!(fresh.as_ptr() as usize % 128, 0);
            let floats: &[f32] = bytemuck::cast_slice(&fresh);
            assert!(floats.iter().all(|x| x.is_nan()), "fresh heap is poisoned in debug builds");
            let again = fabric.read(span(region, 500, 10)).unwrap();
            assert_eq!(again.len(), 10, "readers share");
        }
        let mut left = fabric.write(span(region, 0, 512)).unwrap();
        let mut right = fabric.write(span(region, 512, 488)).unwrap();
        bytemuck::cast_slice_mut::<u8, u64>(&mut left).fill(1);
        right.fill(2);
        let clash = fabric.read(span(region, 511, 1)).unwrap_err();
        assert!(matches!(clash, Error::Conflict { holder: "a local writer", .. }), "{clash}");
        drop((left, right));
        let bytes = fabric.load(span(region, 504, 16)).unwrap();
        assert_eq!(bytes, [[1, 0, 0, 0, 0, 0, 0, 0], [2; 8]].concat());
        fabric.status().unwrap();
    });
    let zeros = HostConfig { poison: false, ..HostConfig::default() };
    run(1, zeros, |fabric| {
        let region = fabric.alloc(Bytes(100), LONG).unwrap();
        assert_eq!(fabric.load(span(region, 0, 100)).unwrap(), [0; 100]);
    });
}

#[test]
fn interleaved_columns_have_several_writers_at_once() {
    // All ranks write their columns of the same rows, slowly enough to be at it at the same time.
    run(4, with_link(1e6, 0), |fabric| {
        const ROWS: usize = 1000;
        let region = fabric.alloc(Bytes(ROWS * 64), LONG).unwrap();
        let source = fabric.alloc(Bytes(ROWS * 16), LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        let mine = u8::try_from(fabric.me().0).unwrap();
        fabric.store(span(source, 0, ROWS * 16), &[mine; ROWS * 16]).unwrap();
        let whole = copy(span(source, 0, 16), region, 16 * fabric.me().index());
        let dst = symm_buffer::Corner { pitch: 64, ..whole.dst };
        let copies = &[Copy2d { dst, rows: ROWS, ..whole }];
        fabric.put_signal(&push, Put { to: Pe(0), copies, post: None }).unwrap();
        fabric.synchronize(&push, LONG).unwrap();
        fabric.barrier(LONG).unwrap();
        if fabric.me() == Pe(0) {
            let row: Vec<u8> = (0..4).flat_map(|from| [from; 16]).collect();
            assert!(fabric.read(span(region, 0, ROWS * 64)).unwrap().chunks(64).all(|got| got == row));
        }
    });
}

#[test]
fn dropped_streams_finish_their_work_and_their_threads_end() {
    run(2, HostConfig::default(), |fabric| {
        // A word each: streams are not in order among each other.
        let first = fabric.alloc_signals(200, LONG).unwrap();
        let peer = 1 - fabric.me().0;
        for turn in 0..200 {
            let there = post(&fabric, SignalId(first.0 + turn), 1);
            let push = fabric.stream("short").unwrap();
            fabric.put_signal(&push, Put { to: Pe(peer), copies: &[], post: Some(there) }).unwrap();
            drop(push);
            fabric.wait(wait_for(peer, there), LONG).unwrap();
        }
        let began = Instant::now();
        while fabric.workers() > 0 {
            assert!(began.elapsed() < PROMPT, "{} threads stay", fabric.workers());
            thread::sleep(ms(1));
        }
    });
}

#[test]
fn leaving_does_not_wait_for_anybody() {
    let began = Instant::now();
    run(3, HostConfig::default(), |fabric| {
        let mut buffer = SrBuffer::new();
        buffer.ensure(&fabric, Bytes(4096), LONG).unwrap();
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        // Nobody will ever post; the buffer is not freed; the stream is not synchronized.
        let hour = ms(3_600_000);
        fabric.wait_on(&push, wait_for(0, post(&fabric, signal, 1)), hour).unwrap();
        let at = buffer.begin();
        let from = buffer.span(at, Part { offset: 0, len: 64 }).unwrap();
        let copies = &[copy(from, from.region, from.offset + 64)];
        fabric.put_signal(&push, Put { to: Pe(0), copies, post: None }).unwrap();
    });
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
}

#[test]
fn worlds_do_not_know_each_other() {
    let other = host::HostWorld::new(World::new(2).unwrap(), HostConfig::default()).unwrap();
    let foreign = other[0].stream("foreign").unwrap();
    let seen = AtomicBool::new(false);
    run(2, HostConfig::default(), |fabric| {
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let put = Put { to: Pe(0), copies: &[], post: Some(post(&fabric, signal, 1)) };
        let error = fabric.put_signal(&foreign, put).unwrap_err();
        assert!(matches!(error, Error::Stream { stream: "foreign", .. }), "{error}");
        seen.store(true, Ordering::Relaxed);
    });
    assert!(seen.into_inner());
    other[1].status().unwrap();
}

#[test]
fn a_world_too_large_for_a_process_is_refused() {
    let tried = host::try_run(World::new(4_000_000_000).unwrap(), HostConfig::default(), |_| ());
    assert!(matches!(tried, Err(Error::NoSuchPe { .. })), "{tried:?}");
}
