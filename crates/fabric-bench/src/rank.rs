//! One rank: joins the world, measures case after case with the others, and tells its times.
use std::time::Duration;

use anyhow::Context;
use fm3_kernels::cuda::{KernelSource, Probes};
use symm_buffer::nvshmem::cudarc::driver::CudaContext;
use symm_buffer::nvshmem::cudarc::driver::sys::CUevent_flags;
use symm_buffer::nvshmem::{NvshmemConfig, NvshmemFabric, NvshmemStream, NvshmemWorld, Ordinal};
use symm_buffer::rendezvous::{Place, Seat, Terms, Token};
use symm_buffer::{
    Bytes, Epoch, Fabric, Label, Note, Pe, Post, Put, RegionId, SignalId, Step, Use, Wait, World,
};

use fabric_bench::DeviceSide;

use crate::figures::Figures;
use crate::{Args, cases};

/// Deadline of everything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One rank of the benchmark.
pub(crate) struct Rank {
    pub(crate) world: std::sync::Arc<NvshmemWorld>,
    pub(crate) fabric: NvshmemFabric,
    pub(crate) probes: Probes,
    pub(crate) source: KernelSource,
    /// If its kernel was built.
    pub(crate) device_side: Option<DeviceSide>,
    /// What is sent, and room for what comes: two halves of the largest message each.
    pub(crate) region: RegionId,
    pub(crate) most: usize,
    pub(crate) repeats: usize,
    /// Word 0 opens gates, word 1 says that data is there, word 2 answers.
    pub(crate) words: SignalId,
    pub(crate) push: NvshmemStream,
    gate: NvshmemStream,
    rounds: std::cell::Cell<u64>,
    notes: std::cell::Cell<u64>,
}

/// Whether the other direction is busy too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ways {
    One,
    Both,
}

pub(crate) fn run(args: &Args, rank: u32, port: u16) -> anyhow::Result<()> {
    let seat = Seat::new(Pe(rank), World::new(args.ranks)?)?;
    let place = Place { host: "127.0.0.1".to_owned(), port, bind: None };
    let terms = Terms::new(Token::new("fabric-bench")?, Vec::new())?;
    let gpus = usize::try_from(CudaContext::device_count().context("no CUDA driver")?)?.max(1);
    let most = args.most << 20;
    let device = (Ordinal(rank as usize % gpus), NvshmemConfig::default());
    let world = NvshmemWorld::meet(seat, &place, &terms, device, PATIENCE)?;
    let fabric = world.fabric(PATIENCE)?;
    let source = args.kernels.clone().map_or(KernelSource::Search, KernelSource::Folder);
    let device_side =
        world.with_session(|session| DeviceSide::load(fabric.context(), session, &source))??;
    if device_side.is_none() && seat.me() == Pe(0) {
        println!("LEFT OUT: NVSHMEM in a kernel; `cargo xtask build-kernels --nvshmem` makes it");
    }
    let mut rank = Rank {
        device_side,
        probes: Probes::load(fabric.context(), &source)?,
        source,
        region: fabric.alloc(Bytes(2 * most), PATIENCE)?,
        most,
        repeats: args.repeats,
        words: fabric.alloc_signals(3, PATIENCE)?,
        push: fabric.stream("push")?,
        gate: fabric.stream("gate")?,
        rounds: std::cell::Cell::new(0),
        notes: std::cell::Cell::new(0),
        world,
        fabric,
    };
    let mut figures = Figures::new(args, gpus, &rank)?;
    cases::all(&rank, &mut figures)?;
    if rank.me() == Pe(0) {
        figures.finish(args)?;
    }
    rank.end_device_side()?;
    let Rank { world, fabric, region, push, gate, .. } = rank;
    fabric.free(region, PATIENCE)?;
    drop((push, gate));
    fabric.close(PATIENCE)?;
    Ok(world.finalize(PATIENCE)?)
}

impl Rank {
    pub(crate) fn me(&self) -> Pe {
        self.fabric.me()
    }

    /// Ranks 0 and 1 measure with each other.
    pub(crate) fn peer(&self) -> Pe {
        Pe(1 - self.me().0.min(1))
    }

    /// Whether the two that measure are on one GPU. Collective.
    pub(crate) fn shares_gpu(&self) -> anyhow::Result<bool> {
        // The number of a GPU is each process's own; its UUID is not.
        let uuid = self.fabric.context().uuid()?.bytes.map(i8::cast_unsigned);
        let mine: [u64; 2] = bytemuck::cast(uuid);
        let all = self.told([mine[0], mine[1], 0, 0, 0, 0])?;
        Ok(all[0] == all[1])
    }

    pub(crate) fn measures(&self, ways: Ways) -> bool {
        self.me() == Pe(0) || (ways == Ways::Both && self.me() == Pe(1))
    }

    /// A value that was never used before, the same on all ranks when all count alike.
    pub(crate) fn next_round(&self) -> anyhow::Result<Epoch> {
        let round = self.rounds.get() + 1;
        self.rounds.set(round);
        Ok(Epoch::new(self.fabric.incarnation(), Use(round), Step(0))?)
    }

    pub(crate) fn word(&self, index: u32) -> SignalId {
        SignalId(self.words.0 + index)
    }

    pub(crate) fn wait_for(&self, index: u32, at_least: Epoch, peer: Pe) -> Wait {
        Wait { signal: self.word(index), at_least, peer, label: Label { stage: "bench", piece: 0 } }
    }

    /// Milliseconds between two events around what `enqueue` queues on `stream`, begun at once on all ranks behind a gate.
    /// Ranks that do not measure return zero.
    pub(crate) fn gated(
        &self,
        stream: &NvshmemStream,
        measures: bool,
        enqueue: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let opening = self.next_round()?;
        let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
        let mut events = None;
        if measures {
            self.fabric.wait_on(stream, self.wait_for(0, opening, self.me()), PATIENCE)?;
            let begin = stream.cuda().record_event(flags)?;
            enqueue()?;
            events = Some((begin, stream.cuda().record_event(flags)?));
        }
        self.fabric.barrier(PATIENCE)?;
        let post = Some(Post { signal: self.word(0), value: opening });
        self.fabric.put_signal(&self.gate, Put { to: self.me(), copies: &[], post })?;
        self.fabric.synchronize(stream, PATIENCE)?;
        let time = events.map_or(Ok(0.0), |(begin, end)| begin.elapsed_ms(&end).map(f64::from))?;
        self.fabric.barrier(PATIENCE)?;
        Ok(time)
    }

    /// The largest of all ranks' numbers.
    pub(crate) fn slowest(&self, mine: f64) -> anyhow::Result<f64> {
        let notes = self.told([mine.to_bits(), 0, 0, 0, 0, 0])?;
        Ok(notes.iter().map(|note| f64::from_bits(note[0])).fold(mine, f64::max))
    }

    /// What each rank tells.
    fn told(&self, mine: Note) -> anyhow::Result<Vec<Note>> {
        let number = self.notes.get();
        self.notes.set(number + 1);
        self.fabric.publish(number, mine);
        self.fabric.barrier(PATIENCE)?;
        let note = |pe| self.fabric.published(pe, number)?.context("a rank told nothing");
        let notes = self.fabric.world().ranks().map(note).collect::<anyhow::Result<_>>()?;
        self.fabric.barrier(PATIENCE)?;
        Ok(notes)
    }
}
