//! Puts, gets, signals and barriers in a stream. Copies here are complete when the stream is past them, so quiet is
//! nothing, and puts and their nbi forms are the same.
use std::sync::Arc;

use super::control::Waiter;
use super::{give_up, team, world};
use crate::bytes::{Copy, copy_in_stream};
use crate::c::export;
use crate::code::Outcome;
use crate::config;
use crate::stream::{self, Stream};
use crate::word::{Word, poll};

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_putmem_on_stream(to: usize, from: usize, bytes: usize, pe: i32, stream: usize) {
    put("nvshmemx_putmem_on_stream", to, from, bytes, pe, stream);
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_putmem_nbi_on_stream(to: usize, from: usize, bytes: usize, pe: i32, stream: usize) {
    put("nvshmemx_putmem_nbi_on_stream", to, from, bytes, pe, stream);
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_getmem_on_stream(to: usize, from: usize, bytes: usize, pe: i32, stream: usize) {
    get("nvshmemx_getmem_on_stream", to, from, bytes, pe, stream);
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_getmem_nbi_on_stream(to: usize, from: usize, bytes: usize, pe: i32, stream: usize) {
    get("nvshmemx_getmem_nbi_on_stream", to, from, bytes, pe, stream);
}

export! {
    fn nvshmemx_putmem_signal_on_stream(
        to: usize,
        from: usize,
        bytes: usize,
        word: usize,
        signal: u64,
        operation: i32,
        pe: i32,
        stream: usize,
    ) {
        put("nvshmemx_putmem_signal_on_stream", to, from, bytes, pe, stream);
        send("nvshmemx_putmem_signal_on_stream", word, signal, operation, pe, stream);
    }
}

export! {
    fn nvshmemx_putmem_signal_nbi_on_stream(
        to: usize,
        from: usize,
        bytes: usize,
        word: usize,
        signal: u64,
        operation: i32,
        pe: i32,
        stream: usize,
    ) {
        put("nvshmemx_putmem_signal_nbi_on_stream", to, from, bytes, pe, stream);
        send("nvshmemx_putmem_signal_nbi_on_stream", word, signal, operation, pe, stream);
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_signal_op_on_stream(word: usize, signal: u64, operation: i32, pe: i32, stream: usize) {
    send("nvshmemx_signal_op_on_stream", word, signal, operation, pe, stream);
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_signal_wait_until_on_stream(word: usize, comparison: i32, value: u64, stream: usize) {
    let call = "nvshmemx_signal_wait_until_on_stream";
    refuse_one_gpu(call);
    let word = Word::new(word, 8).unwrap_or_else(|_| give_up(&format!("{call}: no word of the heap")));
    let holds: fn(u64, u64) -> bool = match comparison {
        0 => |now, value| now == value,
        1 => |now, value| now != value,
        2 => |now, value| now > value,
        3 => |now, value| now <= value,
        4 => |now, value| now < value,
        5 => |now, value| now >= value,
        _ => give_up(&format!("{call}: no comparison {comparison}")),
    };
    queue(call, stream).push_here(move || poll(|| holds(word.load(), value) || crate::context::has_failed()));
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_quiet_on_stream(stream: usize) {
    queue("nvshmemx_quiet_on_stream", stream).push_here(|| ());
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_barrier_all_on_stream(stream: usize) {
    barrier("nvshmemx_barrier_all_on_stream", 0, stream);
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_sync_all_on_stream(stream: usize) {
    barrier("nvshmemx_sync_all_on_stream", 0, stream);
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_barrier_on_stream(team: i32, stream: usize) -> i32 {
    refuse_one_gpu("nvshmemx_barrier_on_stream");
    barrier("nvshmemx_barrier_on_stream", team, stream)
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_team_sync_on_stream(team: i32, stream: usize) -> i32 {
    refuse_one_gpu("nvshmemx_team_sync_on_stream");
    barrier("nvshmemx_team_sync_on_stream", team, stream)
}

fn put(call: &str, to: usize, from: usize, bytes: usize, pe: i32, stream: usize) {
    copy(call, Copy::line(place(call, to, pe), from, bytes), stream);
}

fn get(call: &str, to: usize, from: usize, bytes: usize, pe: i32, stream: usize) {
    copy(call, Copy::line(to, place(call, from, pe), bytes), stream);
}

fn copy(call: &str, copy: Copy, stream: usize) {
    let queued: Outcome = copy_in_stream(&queue(call, stream), vec![copy]);
    if let Err(code) = queued {
        give_up(&format!("{call}: {code:?} for {copy:x?}"));
    }
}

/// Sets (9) or adds to (10) a word of another rank, after all earlier work of the stream.
fn send(call: &str, word: usize, signal: u64, operation: i32, pe: i32, stream: usize) {
    let word = Word::new(place(call, word, pe), 8)
        .unwrap_or_else(|_| give_up(&format!("{call}: signals are aligned words of the heap")));
    let apply: fn(Word, u64) = match operation {
        9 => Word::store,
        10 => Word::add,
        _ => give_up(&format!("{call}: no signal operation {operation}")),
    };
    queue(call, stream).push_here(move || apply(word, signal));
}

/// Streams have barriers apart from the hosts'.
fn barrier(call: &str, team: i32, stream: usize) -> i32 {
    let world = world::needed(call);
    let Some(team) = team::get(&world, team) else { return 1 };
    queue(call, stream).push_here(move || team.meet(world.control, Waiter::Stream));
    0
}

fn queue(call: &str, stream: usize) -> Arc<Stream> {
    stream::get(stream).unwrap_or_else(|_| give_up(&format!("{call}: no such stream")))
}

/// An address of my heap in that of `pe`.
fn place(call: &str, address: usize, pe: i32) -> usize {
    let world = world::needed(call);
    let place = || world.made_heap()?.at(address, usize::try_from(pe).ok()?);
    place().unwrap_or_else(|| {
        give_up(&format!("{call}: {address:#x} is no address of the heap, or {pe} no rank"))
    })
}

/// What the real library cannot do with several ranks on one GPU and no MPS.
fn refuse_one_gpu(call: &str) {
    if config::one_gpu() && world::needed(call).count > 1 {
        give_up(&format!("{call} with several ranks on one GPU needs MPS"));
    }
}
