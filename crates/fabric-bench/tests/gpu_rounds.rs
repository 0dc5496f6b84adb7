//! Rounds of push, signal, acquire and comparison of every word while a kernel fills the device (rule S2): what a signal
//! promises is there. In both directions between two ranks, and from one rank to itself. A million rounds on GPUs; fewer
//! where two ranks share one, and on the simulated driver, whose memory is the CPU's and proves the order of calls only.
#![expect(unsafe_code, reason = "a kernel is given addresses of the fabric")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#[path = "../../symm-buffer/tests/processes/mod.rs"]
mod processes;

use std::time::{Duration, Instant};

use fm3_kernels::cuda::{KernelSource, Probes};
use fm3_kernels::params::{ProbeCheckParams, Source, pattern};
use processes::{LONG, expect_success, gpus, join, part, start, variable};
use symm_buffer::nvshmem::{NvshmemFabric, NvshmemStream};
use symm_buffer::{
    Bytes, Copy2d, Corner, Epoch, Fabric, Label, Pe, Post, Put, RegionId, SignalId, Span, Step, Use, Wait,
};

/// Sources that take turns, so that what an earlier round left in a slot is not taken for this one's.
const SOURCES: usize = 61;
const SLOT: usize = 16 << 10;
/// Deadline of one wait, of streams and of the kernel: with it a failure ends before the processes are given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// On GPUs.
const ROUNDS: u32 = 1_000_000;
/// Of two ranks that share a GPU. The driver gives it to the processes in turns of some 2 ms, and a round needs a turn of
/// each: 2.4 ms a round trip on an H200, so that a million would take 40 minutes, and these take 7 s.
const SHARED_ROUNDS: u32 = 3_000;
/// On the simulated driver.
const SIMULATED_ROUNDS: u32 = 300;

/// Starts so many processes with so many hardware connections.
fn run(ranks: u32, connections: &str) {
    let simulated = (gpus() == 0).then(|| kernel_sim::install().unwrap());
    let mut variables = vec![("CUDA_DEVICE_MAX_CONNECTIONS", connections)];
    let own: Vec<_> = simulated.iter().flat_map(|installed| installed.variables()).collect();
    variables.extend(own.iter().map(|(name, value)| (*name, value.to_str().unwrap())));
    let rounds = match gpus() {
        0 => SIMULATED_ROUNDS,
        gpus if gpus < ranks as usize => SHARED_ROUNDS,
        _ => ROUNDS,
    };
    expect_success(start("one_rank", ranks, rounds, &variables));
}

#[test]
fn no_round_shows_a_wrong_word_with_8_connections() {
    run(2, "8");
}

#[test]
fn no_round_shows_a_wrong_word_with_1_connection() {
    run(2, "1");
}

#[test]
fn no_round_shows_a_wrong_word_with_32_connections() {
    run(2, "32");
}

#[test]
fn no_round_to_itself_shows_a_wrong_word_with_8_connections() {
    run(1, "8");
}

#[test]
fn no_round_to_itself_shows_a_wrong_word_with_1_connection() {
    run(1, "1");
}

#[test]
fn no_round_to_itself_shows_a_wrong_word_with_32_connections() {
    run(1, "32");
}

#[test]
#[ignore = "is started by the others"]
fn one_rank() {
    let Some(part) = part() else { return };
    let begun = Instant::now();
    let world = join(&part, LONG).unwrap();
    let fabric = world.fabric(LONG).unwrap();
    let rounds = Rounds::new(&fabric, u64::from(part.job));
    rounds.fill();
    let params = rounds.params();
    // On the simulated driver kernels are where it says.
    let source =
        variable("FM_KERNELS").map_or(KernelSource::Search, |folder| KernelSource::Folder(folder.into()));
    let probes = Probes::load(fabric.context(), &source).unwrap();
    let (push, work) = (fabric.stream("push").unwrap(), fabric.stream("check").unwrap());
    // SAFETY: regions and words of the fabric, which is drained and dropped after the kernel has ended.
    unsafe { probes.check(work.cuda(), &params) }.unwrap();
    rounds.send(&push);
    fabric.synchronize(&push, PATIENCE).unwrap();
    fabric.synchronize(&work, PATIENCE).unwrap();
    let found: Vec<u64> = bytemuck::pod_collect_to_vec(&fabric.load(rounds.found()).unwrap());
    assert_eq!(found, [1, rounds.count, 0, 0], "end, rounds read, wrong words, a wrong round + 1");
    println!("{}: {} rounds of {SLOT} bytes, {:.1?}", fabric.me(), rounds.count, begun.elapsed());
    fabric.barrier(LONG).unwrap();
    drop((push, work));
    fabric.close(LONG).unwrap();
    world.finalize(LONG).unwrap();
}

/// What a rank has for its rounds.
struct Rounds<'a> {
    fabric: &'a NvshmemFabric,
    count: u64,
    /// Sources, then two slots, then what the kernel found.
    region: RegionId,
    ready: SignalId,
    free: SignalId,
    /// A round's value is this and its number.
    base: Epoch,
}

impl<'a> Rounds<'a> {
    fn new(fabric: &'a NvshmemFabric, count: u64) -> Self {
        let region = fabric.alloc(Bytes((SOURCES + 2) * SLOT + 128), LONG).unwrap();
        let ready = fabric.alloc_signals(2, LONG).unwrap();
        let base = Epoch::new(fabric.incarnation(), Use(1), Step(0)).unwrap();
        Self { fabric, count, region, ready, free: SignalId(ready.0 + 1), base }
    }

    /// The other rank; alone, this one.
    fn peer(&self) -> Pe {
        let me = self.fabric.me();
        self.fabric.world().after(me).next().unwrap_or(me)
    }

    fn slots(&self) -> Span {
        Span { region: self.region, offset: SOURCES * SLOT, len: 2 * SLOT }
    }

    fn found(&self) -> Span {
        Span { region: self.region, offset: (SOURCES + 2) * SLOT, len: 32 }
    }

    fn fill(&self) {
        for (source, number) in (0..SOURCES).zip(0..) {
            let words: Vec<u32> = (0..).take(SLOT / 4).map(|index| pattern(Source(number), index)).collect();
            let span = Span { region: self.region, offset: source * SLOT, len: SLOT };
            self.fabric.store(span, bytemuck::cast_slice(&words)).unwrap();
        }
        self.fabric.store(self.slots(), &[0xFF; 2 * SLOT]).unwrap();
        self.fabric.store(self.found(), &[0; 32]).unwrap();
        self.fabric.barrier(LONG).unwrap();
    }

    fn params(&self) -> ProbeCheckParams {
        ProbeCheckParams {
            slots: self.fabric.address(self.slots()).unwrap(),
            slot_bytes: SLOT as u64,
            ready: self.fabric.signal_address(self.ready).unwrap(),
            free: self.fabric.post_address(self.peer(), self.free).unwrap().host,
            base: self.base.0,
            rounds: self.count,
            found: self.fabric.address(self.found()).unwrap(),
            deadline_ns: u64::try_from(PATIENCE.as_nanos()).unwrap(),
            sources: u32::try_from(SOURCES).unwrap(),
            reserved: 0,
        }
    }

    fn send(&self, push: &NvshmemStream) {
        let (fabric, peer, region) = (self.fabric, self.peer(), self.region);
        let sources = (0..SOURCES).cycle();
        for (round, source) in (0..self.count).zip(sources) {
            if round >= 2 {
                // The peer has read the slot.
                let label = Label { stage: "free", piece: 0 };
                let wait = Wait { signal: self.free, at_least: Epoch(self.base.0 + round - 1), peer, label };
                fabric.wait_on(push, wait, PATIENCE).unwrap();
            }
            let slot = SOURCES + usize::from(round % 2 == 1);
            let corner = |slot: usize| Corner { region, offset: slot * SLOT, pitch: SLOT };
            let copy = Copy2d { src: corner(source), dst: corner(slot), width: SLOT, rows: 1 };
            let post = Some(Post { signal: self.ready, value: Epoch(self.base.0 + round + 1) });
            fabric.put_signal(push, Put { to: peer, copies: &[copy], post }).unwrap();
            if round % 1024 == 1023 {
                // Streams hold so much queued work and no more. In turns on one GPU these are some 3 s.
                fabric.synchronize(push, PATIENCE).unwrap();
            }
        }
    }
}
