//! Ranks as processes with a GPU each.
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fabric_bench::start_ranks;
use fm_cp::nvshmem::{NvshmemConfig, NvshmemFabric, NvshmemWorld, Ordinal};
use fm_cp::{
    CallHandle, Config, CpAttention, CpGroup, DType, DeviceForward, Options, Overlap, Pe, Prepared, Sharding,
    World,
};
use fm3_kernels::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use fm3_kernels::cuda::{DeviceView, DeviceViewMut, KernelSource, LseMut, Probes, is_present};
use fm3_kernels::view::Extents;
use half::bf16;
use symm_buffer::rendezvous::{Launch, Place, Seat, Terms, Token};
use symm_buffer::{Bytes, Copy2d, Corner, Fabric, Put, Span};

use super::report::{Line, Measured, Report};
use super::rows::{self, Row};
use super::trace::{self, Traced};
use super::{BenchMultinodeArgs, chosen, finish, write};
use crate::bench::{Device, Launches};
use crate::shell;

/// Deadline of what ranks do together.
const PATIENCE: Duration = Duration::from_secs(120);

/// GPUs of this machine.
pub(super) fn count() -> usize {
    let devices = is_present().then(|| CudaContext::device_count().unwrap_or(0));
    usize::try_from(devices.unwrap_or(0)).unwrap_or(0)
}

/// Starts a process per rank and waits for all; when one fails the others are ended.
///
/// # Errors
/// When one cannot be started.
pub(super) fn start(args: &BenchMultinodeArgs) -> anyhow::Result<ExitCode> {
    let ranks = args.ranks.unwrap_or_else(|| u32::try_from(count().max(2)).unwrap_or(2));
    let failed = start_ranks(ranks, |process, rank, port| {
        process.args(["--part", &rank.to_string(), &ranks.to_string(), &port.0.to_string()]);
        // The ranks are on one machine.
        process.env("NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME", "lo");
    })?;
    Ok(failed.map_or(ExitCode::SUCCESS, |status| ExitCode::from(shell::code(status))))
}

/// A rank that [`start`] has started.
pub(super) fn part(args: &BenchMultinodeArgs, part: &[u16]) -> anyhow::Result<()> {
    let [rank, ranks, port] = *part else { anyhow::bail!("--part takes three numbers") };
    let seat = Seat::new(Pe(u32::from(rank)), World::new(u32::from(ranks))?)?;
    let place = Place { host: "127.0.0.1".to_owned(), port, bind: None };
    run(args, (seat, &place), Token::new("bench-multinode")?, usize::from(rank))
}

/// A rank of a launcher's job.
pub(super) fn job(args: &BenchMultinodeArgs, job: Launch) -> anyhow::Result<()> {
    run(args, (job.seat, &job.place), job.token, job.local as usize)
}

fn run(
    args: &BenchMultinodeArgs,
    (seat, place): (Seat, &Place),
    token: Token,
    local: usize,
) -> anyhow::Result<()> {
    let ordinal = Ordinal(local % count().max(1));
    let terms = Terms::new(token, Vec::new())?;
    let device = (ordinal, NvshmemConfig::default());
    let world = NvshmemWorld::meet(seat, place, &terms, device, PATIENCE)?;
    let source = args.kernels.clone().map_or(KernelSource::Search, KernelSource::Folder);
    let mut rank = Rank::new(&world, ordinal, &source, args)?;
    let (mut lines, mut traced) = (Vec::new(), Vec::new());
    for row in chosen(args, rows::of_gpus())? {
        let measured = rank.measure(&row).with_context(|| row.name())?;
        let all = exchange(&rank.tells, &serde_json::to_string(&measured)?)?;
        if seat.me() == Pe(0) {
            let all =
                all.iter().map(|text| serde_json::from_str(text)).collect::<Result<Vec<Measured>, _>>()?;
            lines.extend(Line::of(&row, &all));
            let ranks = all.into_iter().filter_map(|measured| measured.traced).collect();
            traced.push(trace::Call { name: row.name(), ranks });
            eprintln!("{}", row.name());
        }
    }
    if seat.me() == Pe(0) {
        let device = rank.device.describe()?;
        let backend = "GPU backend, a process per rank".to_owned();
        finish(args, &Report { backend, device, ranks: seat.world().size(), lines })?;
        if let Some(file) = args.trace.as_ref().filter(|_| !args.list) {
            write(file, &serde_json::to_string(&trace::document(&traced))?)?;
        }
    }
    let Rank { overlapped, gathered, tells, .. } = rank;
    overlapped.close()?;
    gathered.close()?;
    tells.close(PATIENCE)?;
    Ok(world.finalize(PATIENCE)?)
}

/// What one rank has for all rows.
struct Rank {
    device: Device,
    overlapped: CpGroup,
    /// The same, but it gathers first.
    gathered: CpGroup,
    /// For results.
    tells: NvshmemFabric,
    pool: CudaSlice<bf16>,
    repeats: usize,
    /// Reads the clock, for a trace.
    probes: Option<Probes>,
}

impl Rank {
    fn new(
        world: &Arc<NvshmemWorld>,
        ordinal: Ordinal,
        source: &KernelSource,
        args: &BenchMultinodeArgs,
    ) -> anyhow::Result<Self> {
        let device = Device::open(ordinal.0, source)?;
        let config = |overlap| Ok::<_, anyhow::Error>(Config { overlap, ..Config::from_env()? });
        let join = |overlap| -> anyhow::Result<CpGroup> {
            let attention = device.attention().clone();
            Ok(CpGroup::join_with(world.fabric(PATIENCE)?, config(overlap)?, attention)?)
        };
        let (overlapped, gathered) = (join(Overlap::On)?, join(Overlap::Off)?);
        let (tells, pool) = (world.fabric(PATIENCE)?, device.pool()?);
        let load = || Probes::load(device.stream.context(), source);
        let probes = args.trace.is_some().then(load).transpose()?;
        Ok(Self { overlapped, gathered, tells, pool, repeats: args.repeats as usize, probes, device })
    }

    /// All three kinds of calls of a row.
    fn measure(&mut self, row: &Row) -> anyhow::Result<Measured> {
        let sharding = Sharding::dual_chunk(row.seq, self.overlapped.world())?;
        let mask = row.build()?;
        let shape = row.shape(DType::Bf16);
        let prepare = |group: &CpGroup| group.prepare(&mask, shape, &sharding);
        let (on, off) = (prepare(&self.overlapped)?, prepare(&self.gathered)?);
        let mut tensors = Local::new(&self.device, &self.pool, &on)?;
        let mut measured = Measured::default();
        let calls = tensors.calls(&mut self.overlapped, &on, self.repeats, &mut measured)?;
        measured.overlapped = calls;
        tensors.timed_calls(&mut self.overlapped, &on, self.probes.as_ref(), &mut measured)?;
        let mut unused = Measured::default();
        measured.gathered = tensors.calls(&mut self.gathered, &off, self.repeats, &mut unused)?;
        drop(tensors);
        measured.attention = self.attention_only(&on)?;
        Ok(measured)
    }

    /// The same attention over keys that are all here: this rank's mask, the same segments.
    fn attention_only(&mut self, prepared: &Prepared) -> anyhow::Result<Vec<f64>> {
        let rows: Vec<usize> = prepared.plan().segments.iter().map(|segment| segment.rows).collect();
        let table = self.device.prepare(prepared.mask(), rows)?;
        let mut tensors = self.device.tensors(&self.pool, prepared.plan().shape.dims(), None)?;
        self.tells.barrier(PATIENCE)?;
        let counts = Launches { warmups: 1, launches: self.repeats };
        let times = self.device.calls(&mut tensors, &table, counts, &mut Vec::new())?;
        self.device.check(&tensors)?;
        Ok(times)
    }
}

/// This rank's tensors, [b, s, h, d] dense, and the stream of its calls.
struct Local {
    stream: Arc<CudaStream>,
    of_q: Extents,
    of_k: Extents,
    q: CudaSlice<bf16>,
    k: CudaSlice<bf16>,
    v: CudaSlice<bf16>,
    o: CudaSlice<bf16>,
    lse: CudaSlice<f32>,
}

impl Local {
    fn new(device: &Device, pool: &CudaSlice<bf16>, prepared: &Prepared) -> anyhow::Result<Self> {
        let dims = prepared.plan().shape.dims();
        let extents = |heads| Extents { batch: dims.batch, seq: dims.seq_q, heads, head_dim: dims.head_dim };
        let len = |heads: usize| dims.batch * dims.seq_q * heads * dims.head_dim;
        let filled = |heads, from| device.filled(pool, len(heads), from);
        let stream = device.stream.context().new_stream()?;
        let (q, k, v) =
            (filled(dims.heads_q, 0)?, filled(dims.heads_kv, 1_000)?, filled(dims.heads_kv, 9_000)?);
        device.stream.synchronize()?;
        let o = stream.alloc_zeros(len(dims.heads_q))?;
        let lse = stream.alloc_zeros(dims.batch * dims.heads_q * dims.seq_q)?;
        Ok(Self { of_q: extents(dims.heads_q), of_k: extents(dims.heads_kv), stream, q, k, v, o, lse })
    }

    /// Milliseconds of each call between its own events; nobody waits between them.
    fn calls(
        &mut self,
        group: &mut CpGroup,
        prepared: &Prepared,
        repeats: usize,
        measured: &mut Measured,
    ) -> anyhow::Result<Vec<f64>> {
        let attention = CpAttention::new(Options::default())?;
        let stream = self.stream.clone();
        // The first call makes memory; it is over before the others begin.
        self.call(&attention, group, prepared)?.wait()?;
        group.barrier()?;
        let mut handles = Vec::new();
        let mut host = Vec::new();
        let times = crate::bench::timed(&stream, repeats, || {
            let begun = Instant::now();
            handles.push(self.call(&attention, group, prepared)?);
            host.push(begun.elapsed().as_secs_f64() * 1e6);
            Ok(())
        })?;
        for handle in handles {
            let report = handle.wait()?;
            measured.sent = report.bytes_sent().0 as u64;
            measured.sent_mask_blind = report.bytes_mask_blind.0 as u64;
            measured.flops = report.flops;
            let queued = report.queued;
            // A batch of puts is copies and words, a stream that follows an event and a wait; and the launch.
            measured.driver_calls = u64::from(2 * queued.puts + queued.waits + 2 * queued.follows + 1);
        }
        host.sort_by(f64::total_cmp);
        measured.host_us = host[host.len() / 2];
        let lse = stream.clone_dtoh(&self.lse)?;
        ensure!(lse.iter().all(|value| !value.is_nan()), "LSE is no number");
        Ok(times)
    }

    /// Calls that take times themselves; nobody waits between them.
    fn timed_calls(
        &mut self,
        group: &mut CpGroup,
        prepared: &Prepared,
        probes: Option<&Probes>,
        measured: &mut Measured,
    ) -> anyhow::Result<()> {
        /// Behind one with whose start nobody is in step.
        const CALLS: usize = 5;
        let attention = CpAttention::new(Options::default())?;
        let before = probes.map(|probes| probes.read_clock(&self.stream)).transpose()?;
        group.barrier()?;
        group.measure(true);
        let calls = (0..=CALLS).map(|_| self.call(&attention, group, prepared));
        let handles = calls.collect::<anyhow::Result<Vec<_>>>()?;
        let mut last = None;
        for handle in handles.iter().skip(1) {
            let times = handle.wait()?.device.context("a measured call has no times")?;
            measured.waited_us.push(times.exposed().as_secs_f64() * 1e6);
            measured.idle_us.push(times.idle.as_secs_f64() * 1e6);
            measured.copies_gigabytes_per_s = times.gigabytes_per_s().max(measured.copies_gigabytes_per_s);
            last = Some(times);
        }
        group.measure(false);
        let clocks = before.zip(probes.map(|probes| probes.read_clock(&self.stream)).transpose()?);
        measured.traced =
            clocks.zip(last).map(|((before, behind), times)| Traced { clocks: [before, behind], times });
        Ok(())
    }

    fn call(
        &mut self,
        attention: &CpAttention,
        group: &mut CpGroup,
        prepared: &Prepared,
    ) -> anyhow::Result<CallHandle> {
        let stream = self.stream.clone();
        let call = DeviceForward {
            q: &DeviceView::bshd(&self.q, &stream, self.of_q)?,
            k: &DeviceView::bshd(&self.k, &stream, self.of_k)?,
            v: &DeviceView::bshd(&self.v, &stream, self.of_k)?,
            o: &DeviceViewMut::bshd(&mut self.o, &stream, self.of_q)?,
            lse: &LseMut::new(&mut self.lse, &stream),
        };
        Ok(attention.enqueue_forward(group, prepared, &stream, call)?)
    }
}

/// Everybody's text, on rank 0. Collective.
fn exchange(fabric: &NvshmemFabric, text: &str) -> anyhow::Result<Vec<String>> {
    const SLOT: usize = 256 << 10;
    let (me, world) = (fabric.me(), fabric.world());
    ensure!(text.len() <= SLOT - 8, "{} bytes of results do not fit", text.len());
    let region = fabric.alloc(Bytes(SLOT * world.size()), PATIENCE)?;
    let slot = |pe: Pe| Span { region, offset: SLOT * pe.index(), len: SLOT };
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(SLOT, 0);
    fabric.store(slot(me), &bytes)?;
    let stream = fabric.stream("results")?;
    let corner = Corner { region, offset: slot(me).offset, pitch: SLOT };
    let copies = &[Copy2d { src: corner, dst: corner, width: SLOT, rows: 1 }];
    if me != Pe(0) {
        fabric.put_signal(&stream, Put { to: Pe(0), copies, post: None })?;
    }
    fabric.synchronize(&stream, PATIENCE)?;
    fabric.barrier(PATIENCE)?;
    let mut all = Vec::new();
    for pe in world.ranks().filter(|_| me == Pe(0)) {
        let bytes = fabric.load(slot(pe))?;
        let (len, rest) = bytes.split_at(8);
        let len = usize::try_from(u64::from_le_bytes(len.try_into()?))?;
        all.push(String::from_utf8(rest.get(..len).context("a result is cut short")?.to_vec())?);
    }
    fabric.barrier(PATIENCE)?;
    fabric.free(region, PATIENCE)?;
    Ok(all)
}
