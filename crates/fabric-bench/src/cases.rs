//! What is measured.
use std::time::Instant;

use fm3_kernels::cuda::Blocks;
use symm_buffer::{Copy2d, Corner, Epoch, Fabric, Pe, Post, Put, RegionId};

use crate::figures::Figures;
use crate::rank::{PATIENCE, Rank, Ways};
use crate::work::Work;

/// Bytes of all messages of a launch, at least: more than any cache holds.
const TRAIN: usize = 64 << 20;
/// Messages of a launch at most.
const MOST_MESSAGES: usize = 64;
/// Rounds of a latency.
const ROUNDS: u64 = 200;

/// All lines, in the order of the table. Every rank comes to all of them.
pub(crate) fn all(rank: &Rank, figures: &mut Figures) -> anyhow::Result<()> {
    for ways in [Ways::One, Ways::Both] {
        let both = if ways == Ways::Both { ", both ways" } else { "" };
        for bytes in sizes(rank.most) {
            let mut line =
                |name: &str, how: How| train(rank, figures, (&format!("{name}{both}"), bytes), (how, ways));
            line("put + signal", How::Each)?;
            line("puts at once", How::AtOnce)?;
            line("put, rows of 256 B", How::Rows)?;
            line("get", How::Get)?;
            line("NVSHMEM put_signal_nbi", How::Nvshmem)?;
        }
        for blocks in [1, 2, 4, 8, 16, 32, 64] {
            let name = format!("stores of {blocks} CTAs{both}");
            train(rank, figures, (&name, 16 << 20), (How::Stores(Blocks(blocks)), ways))?;
            if rank.device_side.is_some() {
                let name = format!("NVSHMEM get in a kernel of {blocks} CTAs{both}");
                train(rank, figures, (&name, 16 << 20), (How::DeviceGet(Blocks(blocks)), ways))?;
            }
        }
    }
    latency(rank, figures)?;
    host_costs(rank, figures)?;
    beside_attention(rank, figures)
}

/// 1 KiB, 4 KiB, ... up to the largest.
fn sizes(most: usize) -> impl Iterator<Item = usize> {
    let mut sizes: Vec<usize> = (5..).map(|step| 1 << (2 * step)).take_while(|bytes| *bytes < most).collect();
    sizes.push(most);
    sizes.into_iter()
}

/// A way to move bytes.
#[derive(Clone, Copy, Debug)]
enum How {
    /// By copy engine, a signal behind each.
    Each,
    /// By copy engine in one batch, one signal behind all.
    AtOnce,
    /// By copy engine, every second row of 256 bytes.
    Rows,
    /// By my copy engine out of the peer's memory.
    Get,
    /// NVSHMEM's own call on a stream.
    Nvshmem,
    /// By kernels.
    Stores(Blocks),
    /// By kernels that call NVSHMEM.
    DeviceGet(Blocks),
}

/// A train of messages of one size.
fn train(
    rank: &Rank,
    figures: &mut Figures,
    (name, bytes): (&str, usize),
    (how, ways): (How, Ways),
) -> anyhow::Result<()> {
    // Rows take twice the room.
    let fits = !matches!(how, How::Rows) || (bytes >= 256 && 2 * bytes <= rank.most);
    if !figures.wants(name) || bytes > rank.most || !fits {
        return Ok(());
    }
    let count = (TRAIN / bytes).clamp(1, MOST_MESSAGES);
    let mut micros = Vec::new();
    // The first launch warms up.
    for launch in 0..=rank.repeats {
        let values = (0..count).map(|_| rank.next_round()).collect::<anyhow::Result<Vec<_>>>()?;
        let time = rank.gated(&rank.push, rank.measures(ways), || send(rank, how, bytes, &values))?;
        let time = rank.slowest(time * 1e3 / count as f64)?;
        if launch > 0 {
            micros.push(time);
        }
    }
    figures.add(name, bytes, micros);
    Ok(())
}

/// One run of bytes from the first half of `from` to the second half of the region.
fn flat(rank: &Rank, from: RegionId, bytes: usize) -> Copy2d {
    let src = Corner { region: from, offset: 0, pitch: bytes };
    Copy2d {
        src,
        dst: Corner { region: rank.region, offset: rank.most, pitch: bytes },
        width: bytes,
        rows: 1,
    }
}

fn send(rank: &Rank, how: How, bytes: usize, values: &[Epoch]) -> anyhow::Result<()> {
    let fabric = &rank.fabric;
    let post = |value: Epoch| Some(Post { signal: rank.word(1), value });
    let copy = flat(rank, rank.region, bytes);
    match how {
        How::Each => {
            for value in values {
                let put = Put { to: rank.peer(), copies: &[copy], post: post(*value) };
                fabric.put_signal(&rank.push, put)?;
            }
        }
        How::AtOnce => {
            // Each to a place of its own: copies of a batch have no order.
            let room = rank.most / bytes;
            let place = |at: usize| Corner { offset: rank.most + at % room * bytes, ..copy.dst };
            let copies: Vec<Copy2d> = (0..values.len()).map(|at| Copy2d { dst: place(at), ..copy }).collect();
            let put =
                Put { to: rank.peer(), copies: &copies, post: values.last().and_then(|value| post(*value)) };
            fabric.put_signal(&rank.push, put)?;
        }
        How::Rows => {
            let src = Corner { pitch: 512, ..copy.src };
            let copy = Copy2d { src, dst: Corner { pitch: 256, ..copy.dst }, width: 256, rows: bytes / 256 };
            for value in values {
                let put = Put { to: rank.peer(), copies: &[copy], post: post(*value) };
                fabric.put_signal(&rank.push, put)?;
            }
        }
        How::Get => {
            let pulled = rank.with_peer(bytes, |peers| {
                let copy = flat(rank, peers, bytes);
                let put = Put { to: rank.me(), copies: &[copy], post: None };
                values.iter().try_for_each(|_| fabric.put_signal(&rank.push, put))
            });
            pulled??;
        }
        How::Nvshmem => {
            for value in values {
                rank.put_by_nvshmem(&rank.push, bytes, *value)?;
            }
        }
        How::Stores(blocks) => {
            for _ in values {
                rank.copy_by_kernel(rank.push.cuda(), blocks, bytes)?;
            }
        }
        How::DeviceGet(blocks) => {
            for _ in values {
                rank.get_in_kernel(rank.push.cuda(), blocks, bytes)?;
            }
        }
    }
    Ok(())
}

/// Eight bytes and their signal to a kernel that polls and answers, and the answer to a waiting stream: there and back.
fn latency(rank: &Rank, figures: &mut Figures) -> anyhow::Result<()> {
    let name = "8 B put + signal, polled by a kernel, answered to a stream";
    if !figures.wants(name) {
        return Ok(());
    }
    let (fabric, mut micros) = (&rank.fabric, Vec::new());
    for launch in 0..=rank.repeats {
        let base = rank.next_round()?;
        let value = |round: u64| Epoch(base.0 + round);
        if rank.me() == Pe(1) {
            rank.answer(rank.push.cuda(), base, ROUNDS)?;
        }
        fabric.barrier(PATIENCE)?;
        let asks = || -> anyhow::Result<()> {
            let copy = flat(rank, rank.region, 8);
            for round in 1..=ROUNDS {
                let post = Some(Post { signal: rank.word(1), value: value(round) });
                fabric.put_signal(&rank.push, Put { to: Pe(1), copies: &[copy], post })?;
                fabric.wait_on(&rank.push, rank.wait_for(2, value(round), Pe(1)), PATIENCE)?;
            }
            Ok(())
        };
        let time = rank.gated(&rank.push, rank.me() == Pe(0), asks)?;
        let time = rank.slowest(time * 1e3 / ROUNDS as f64)?;
        if launch > 0 {
            micros.push(time);
        }
        // Values of the rounds were used.
        for _ in 0..=ROUNDS >> 12 {
            rank.next_round()?;
        }
    }
    figures.add(name, 0, micros);
    Ok(())
}

/// What a call costs the calling thread, with nothing in its way.
fn host_costs(rank: &Rank, figures: &mut Figures) -> anyhow::Result<()> {
    const CALLS: u32 = 100;
    let fabric = &rank.fabric;
    let copy = flat(rank, rank.region, 1024);
    let mut cost = |name: &str, call: &dyn Fn(Epoch) -> anyhow::Result<()>| -> anyhow::Result<()> {
        if !figures.wants(name) {
            return Ok(());
        }
        let mut micros = Vec::new();
        for launch in 0..=rank.repeats {
            let values = (0..CALLS).map(|_| rank.next_round()).collect::<anyhow::Result<Vec<_>>>()?;
            let begun = Instant::now();
            values.iter().try_for_each(|value| call(*value))?;
            let time = begun.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS);
            fabric.synchronize(&rank.push, PATIENCE)?;
            let time = rank.slowest(time)?;
            if launch > 0 {
                micros.push(time);
            }
        }
        figures.add(name, 0, micros);
        Ok(())
    };
    let post = |value| Some(Post { signal: rank.word(1), value });
    cost("host: put_signal of 1 KiB", &|value| {
        Ok(fabric.put_signal(&rank.push, Put { to: rank.peer(), copies: &[copy], post: post(value) })?)
    })?;
    cost("host: put_signal without bytes", &|value| {
        Ok(fabric.put_signal(&rank.push, Put { to: rank.peer(), copies: &[], post: post(value) })?)
    })?;
    cost("host: put_all of 32 copies", &|value| {
        let place = |at: usize| Corner { offset: copy.dst.offset + at * 1024, ..copy.dst };
        let copies: Vec<Copy2d> = (0..32).map(|at| Copy2d { dst: place(at), ..copy }).collect();
        let put = Put { to: rank.peer(), copies: &copies, post: post(value) };
        Ok(fabric.put_all(&rank.push, &[put])?)
    })?;
    cost("host: wait_on", &|_| {
        Ok(fabric.wait_on(&rank.push, rank.wait_for(0, Epoch(0), rank.me()), PATIENCE)?)
    })?;
    let other = fabric.stream("other")?;
    cost("host: follow", &|_| Ok(fabric.follow(&other, &rank.push)?))?;
    fabric.synchronize(&other, PATIENCE)?;
    Ok(())
}

/// Attention alone, pushes alone, and both at once.
fn beside_attention(rank: &Rank, figures: &mut Figures) -> anyhow::Result<()> {
    const BYTES: usize = 16 << 20;
    const NAMES: [&str; 3] =
        ["attention alone", "attention beside pushes", "pushes of 16 MiB beside attention"];
    if !NAMES.iter().any(|name| figures.wants(name)) || rank.most < BYTES {
        return Ok(());
    }
    let work = Work::new(rank)?;
    let mut micros = [Vec::new(), Vec::new(), Vec::new()];
    for launch in 0..=rank.repeats {
        let alone = rank.gated(&work.stream, true, || work.attend())?;
        // Enough pushes to last as long as attention does, at 390 GB/s.
        let count =
            (1..256).find(|count| f64::from(*count) * BYTES as f64 >= alone * 390e6).unwrap_or(256) as usize;
        let values = (0..256).map(|_| rank.next_round()).collect::<anyhow::Result<Vec<_>>>()?;
        let mut pushes = 0.0;
        let both = rank.gated(&work.stream, true, || {
            let flags = Some(symm_buffer::nvshmem::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT);
            rank.push.cuda().wait(&work.stream.cuda().record_event(None)?)?;
            let begin = rank.push.cuda().record_event(flags)?;
            send(rank, How::Each, BYTES, &values[..count])?;
            let end = rank.push.cuda().record_event(flags)?;
            work.attend()?;
            work.keep(begin, end);
            Ok(())
        })?;
        rank.fabric.synchronize(&rank.push, PATIENCE)?;
        if let Some(time) = work.elapsed()? {
            pushes = f64::from(time) * 1e3 / count as f64;
        }
        for (all, time) in micros.iter_mut().zip([alone * 1e3, both * 1e3, pushes]) {
            let time = rank.slowest(time)?;
            if launch > 0 {
                all.push(time);
            }
        }
    }
    for ((name, times), bytes) in NAMES.into_iter().zip(micros).zip([0, 0, BYTES]) {
        figures.add(name, bytes, times);
    }
    Ok(())
}
