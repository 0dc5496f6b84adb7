//! Rounds of push, signal, acquire and comparison of every word, in both directions, while kernels fill both devices
//! (rule S2): what a signal promises is there. A million rounds on GPUs; fewer on the simulated driver, whose memory is
//! the CPU's and proves the order of calls only.
#![expect(unsafe_code, reason = "a kernel is given addresses of the fabric")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "../../symm-buffer/tests/processes/mod.rs"]
mod processes;

use fm3_kernels::cuda::{KernelSource, Probes};
use fm3_kernels::params::{ProbeCheckParams, pattern};
use processes::{LONG, expect_success, gpus, join, part, start, variable};
use symm_buffer::nvshmem::cudarc::driver::CudaContext;
use symm_buffer::{
    Bytes, Copy2d, Corner, Epoch, Fabric, Label, Pe, Post, Put, SignalId, Span, Step, Use, Wait,
};

/// Sources that take turns, so that what an earlier round left in a slot is not taken for this one's.
const SOURCES: u32 = 61;
const SLOT: usize = 16 << 10;

/// Starts two processes with so many hardware connections.
fn run(connections: &str) {
    let simulated = (gpus() == 0).then(|| kernel_sim::install().unwrap());
    let mut variables = vec![("CUDA_DEVICE_MAX_CONNECTIONS", connections)];
    let own: Vec<_> = simulated.iter().flat_map(|installed| installed.variables()).collect();
    variables.extend(own.iter().map(|(name, value)| (*name, value.to_str().unwrap())));
    expect_success(start("two_ranks", 2, u32::from(simulated.is_some()), &variables));
}

#[test]
fn no_round_shows_a_wrong_word_with_8_connections() {
    run("8");
}

#[test]
fn no_round_shows_a_wrong_word_with_1_connection() {
    run("1");
}

#[test]
fn no_round_shows_a_wrong_word_with_32_connections() {
    run("32");
}

#[test]
#[ignore = "is started by the others"]
fn two_ranks() {
    let Some(part) = part() else { return };
    let rounds: u64 = if part.job == 1 { 300 } else { 1_000_000 };
    let world = join(&part).unwrap();
    let fabric = world.fabric(LONG).unwrap();
    let (me, peer) = (fabric.me(), Pe(1 - fabric.me().0));
    let sources = SOURCES as usize * SLOT;
    let region = fabric.alloc(Bytes(sources + 2 * SLOT + 128), LONG).unwrap();
    let words = fabric.alloc_signals(2, LONG).unwrap();
    let (ready, free) = (words, SignalId(words.0 + 1));
    let span = |offset, len| Span { region, offset, len };
    for source in 0..SOURCES {
        let words: Vec<u32> = (0..SLOT as u32 / 4).map(|index| pattern(source, index)).collect();
        fabric.store(span(source as usize * SLOT, SLOT), bytemuck::cast_slice(&words)).unwrap();
    }
    let found = span(sources + 2 * SLOT, 32);
    fabric.store(span(sources, 2 * SLOT), &[0xFF; 2 * SLOT]).unwrap();
    fabric.store(found, &[0; 32]).unwrap();
    fabric.barrier(LONG).unwrap();
    // A round's value is that of round 0 and its number.
    let base = Epoch::new(fabric.incarnation(), Use(1), Step(0)).unwrap();
    let params = ProbeCheckParams {
        slots: fabric.address(span(sources, 2 * SLOT)).unwrap(),
        slot_bytes: SLOT as u64,
        ready: fabric.signal_address(ready).unwrap(),
        free: fabric.post_address(peer, free).unwrap().host,
        base: base.0,
        rounds,
        found: fabric.address(found).unwrap(),
        deadline_ns: 60_000_000_000,
        sources: SOURCES,
        reserved: 0,
    };
    // On the simulated driver kernels are where it says.
    let source =
        variable("FM_KERNELS").map_or(KernelSource::Search, |folder| KernelSource::Folder(folder.into()));
    let probes = Probes::load(fabric.context(), &source).unwrap();
    let (push, work) = (fabric.stream("push").unwrap(), fabric.stream("check").unwrap());
    // SAFETY: regions and words of the fabric, which is drained and dropped after the kernel has ended.
    unsafe { probes.check(work.cuda(), &params) }.unwrap();
    let limit = LONG * 4;
    for round in 0..rounds {
        if round >= 2 {
            // The peer has read the slot.
            let at_least = Epoch(base.0 + round - 1);
            let label = Label { stage: "free", piece: 0 };
            fabric.wait_on(&push, Wait { signal: free, at_least, peer, label }, limit).unwrap();
        }
        let source = (round % u64::from(SOURCES)) as usize * SLOT;
        let src = Corner { region, offset: source, pitch: SLOT };
        let dst = Corner { region, offset: sources + (round % 2) as usize * SLOT, pitch: SLOT };
        let copy = Copy2d { src, dst, width: SLOT, rows: 1 };
        let post = Some(Post { signal: ready, value: Epoch(base.0 + round + 1) });
        fabric.put_signal(&push, Put { to: peer, copies: &[copy], post }).unwrap();
        if round % 4096 == 4095 {
            // Streams hold so much queued work and no more.
            fabric.synchronize(&push, limit).unwrap();
        }
    }
    fabric.synchronize(&push, limit).unwrap();
    fabric.synchronize(&work, limit).unwrap();
    work.cuda().synchronize().unwrap();
    let found: Vec<u64> = bytemuck::pod_collect_to_vec(&fabric.load(found).unwrap());
    assert_eq!(found, [1, rounds, 0, 0], "{me}: end, rounds read, wrong words, first wrong round + 1");
    println!(
        "{me}: {rounds} rounds of {SLOT} bytes, connections by the driver: {:?}",
        CudaContext::device_count()
    );
    fabric.barrier(LONG).unwrap();
    drop((push, work));
    fabric.close(LONG).unwrap();
    world.finalize(LONG).unwrap();
}
