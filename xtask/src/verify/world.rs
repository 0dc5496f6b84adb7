//! One host world with a fault: every rank runs forward and backward, recovers if it can, and is asked what it saw.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use fm_cp::host::{HostConfig, HostFabric, HostWorld, Wrong};
use fm_cp::mask::{Documents, MaskDims, MaskSpec};
use fm_cp::view::Extents;
use fm_cp::{
    BackwardInputs, Config, CpAttention, CpGroup, CpShape, DType, Error, FlashMask, ForwardInputs,
    ForwardOutputs, Gradients, Options, Pe, Prepared, Sharding, ShardingKind, View4, View4Mut, World,
};
use symm_buffer::Error as Symm;

use super::case::Dice;
use super::faults::{Between, Scenario};

/// Head counts and dim of all scenarios: small, with two query heads per KV head.
const HEADS: (usize, usize) = (4, 2);
const HEAD_DIM: usize = 16;
/// What a scheduler may add to a deadline on a busy machine.
const SLACK: Duration = Duration::from_secs(4);
/// Recovery is asked for again while a stalled rank is not back.
const TRIES: usize = 20;

/// The problem of a scenario.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub ranks: usize,
    pub seq: usize,
    pub kind: ShardingKind,
    pub mask: &'static str,
    pub seed: u64,
}

/// What a world that kept all promises did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    /// Some rank noticed the fault.
    pub struck: bool,
    pub survivors: u64,
    pub recovered: bool,
}

/// Bits of O, LSE, dQ, dK, dV of one rank.
type Bits = Vec<u32>;

/// What one rank saw.
enum Seen {
    /// The right or wrong bits, and after how many recoveries.
    Done(Bits, usize),
    /// It went away or died, as it was told to.
    Gone,
    /// It could not go on since another rank is gone.
    Stopped,
}

struct Problem {
    mask: FlashMask,
    sharding: Sharding,
}

impl Problem {
    fn new(setup: &Setup) -> Result<Self, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let seq = setup.seq;
        let dims = MaskDims { batch: 1, heads: 1, seq_q: seq, seq_k: seq };
        let third = seq / 3;
        let documents =
            Documents::new(vec![vec![third, third, seq - 2 * third]], seq).map_err(|e| text(&e))?;
        let spec: MaskSpec = setup.mask.parse().map_err(|e: fm3_kernels::Error| text(&e))?;
        let mask = spec.build(dims, &documents, setup.seed).map_err(|e| text(&e))?;
        let world = World::new(u32::try_from(setup.ranks).unwrap_or(0)).map_err(|e| text(&e))?;
        Ok(Self { mask, sharding: Sharding::new(setup.kind, seq, world).map_err(|e| text(&e))? })
    }

    const fn shape() -> CpShape {
        CpShape { batch: 1, heads_q: HEADS.0, heads_kv: HEADS.1, head_dim: HEAD_DIM, dtype: DType::F32 }
    }
}

/// Runs the scenario, and before it the same without the fault.
pub(super) fn run_world(scenario: &Scenario) -> Result<Outcome, String> {
    let problem = Problem::new(&scenario.setup)?;
    let healthy = Scenario {
        faults: fm_cp::host::Faults::default(),
        between: None,
        dies: None,
        deadline: Duration::from_secs(20),
        ..*scenario
    };
    let clean = all_ranks(&healthy, &problem)?;
    let seen = all_ranks(scenario, &problem)?;
    let mut outcome = Outcome::default();
    for (rank, (seen, clean)) in seen.into_iter().zip(clean).enumerate() {
        let Seen::Done(wanted, 0) = clean else { return Err("a world without faults failed".to_owned()) };
        match seen {
            Seen::Done(bits, _) if bits != wanted => return Err(format!("rank {rank} has wrong numbers")),
            Seen::Done(_, recoveries) => {
                outcome.survivors += 1;
                outcome.struck |= recoveries > 0;
                outcome.recovered |= recoveries > 0;
            }
            Seen::Stopped => {
                outcome.survivors += 1;
                outcome.struck = true;
            }
            Seen::Gone => outcome.struck = true,
        }
    }
    match scenario.harmless && outcome.struck {
        false => Ok(outcome),
        true => Err("a harmless fault stopped the group".to_owned()),
    }
}

/// What each rank saw; an error if one broke a promise or memory stays behind.
fn all_ranks(scenario: &Scenario, problem: &Problem) -> Result<Vec<Seen>, String> {
    let config = HostConfig {
        faults: scenario.faults,
        verify_puts: scenario.verify_puts,
        poison: true,
        ..HostConfig::default()
    };
    let fabrics = HostWorld::new(problem.sharding.world(), config).map_err(|error| error.to_string())?;
    let ledger = fabrics.first().map(HostFabric::ledger).unwrap_or_default();
    let seen = std::thread::scope(|scope| {
        let body = |fabric| move || Member::run(scenario, problem, fabric);
        let threads: Vec<_> = fabrics.into_iter().map(|fabric| scope.spawn(body(fabric))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| Err(super::panic_text(&*panic)))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, String>>()
    })?;
    match (ledger.blocks(), ledger.bytes()) {
        (0, 0) => Ok(seen),
        (blocks, bytes) => Err(format!("{blocks} blocks, {bytes} bytes of heap are left")),
    }
}

/// One rank of a scenario.
struct Member<'a> {
    scenario: &'a Scenario,
    group: CpGroup,
    prepared: Prepared,
    tensors: [Vec<f32>; 4],
}

impl<'a> Member<'a> {
    fn run(scenario: &'a Scenario, problem: &'a Problem, fabric: HostFabric) -> Result<Seen, String> {
        let text = |error: Error| error.to_string();
        let ledger = fabric.ledger();
        let config = Config { deadline: scenario.deadline, ..Config::default() };
        let group = CpGroup::join(fabric, config).map_err(text)?;
        let prepared = group.prepare(&problem.mask, Problem::shape(), &problem.sharding).map_err(text)?;
        let mut dice = Dice::new(scenario.setup.seed ^ u64::from(group.rank().0) << 32);
        let rows = prepared.plan().shape.dims().seq_q * HEAD_DIM;
        let tensors = [HEADS.0, HEADS.1, HEADS.1, HEADS.0];
        let tensors = tensors.map(|heads| (0..rows * heads).map(|_| dice.value()).collect());
        let mut member = Self { scenario, group, prepared, tensors };
        let seen = member.until_done()?;
        let mate = member.group;
        if matches!(seen, Seen::Done(..)) {
            // After the last collective of closing every rank has given back what it had.
            mate.close().map_err(text)?;
            if ledger.blocks() > 0 {
                return Err(format!("{} blocks of heap are left after closing", ledger.blocks()));
            }
        }
        Ok(seen)
    }

    /// Tries, and recovers as long as all ranks live.
    fn until_done(&mut self) -> Result<Seen, String> {
        let me = self.group.rank();
        let everybody_lives =
            self.scenario.dies.is_none() && !matches!(self.scenario.between, Some((_, _, Between::Leaves)));
        for attempt in 0..2 {
            let began = Instant::now();
            let tried = catch_unwind(AssertUnwindSafe(|| self.attempt(attempt == 0)));
            match tried {
                Ok(Ok(Some(bits))) => return Ok(Seen::Done(bits, attempt)),
                Ok(Ok(None)) => return Ok(Seen::Gone),
                Err(_) if self.scenario.dies == Some(me) => return Ok(Seen::Gone),
                Err(panic) if !self.panics(me) => return Err(super::panic_text(&*panic)),
                Err(_) => {}
                Ok(Err(error)) => self.check(&error, began.elapsed())?,
            }
            if !everybody_lives {
                return Ok(Seen::Stopped);
            }
            let recovered = (0..TRIES).any(|_| self.group.recover().is_ok());
            if !recovered {
                return Err(format!("{me} could not recover: {:?}", self.group.status().err()));
            }
        }
        Err(format!("{me} failed again after recovery"))
    }

    /// Forward, backward, and a look at whether all came through. `None` when this rank leaves.
    fn attempt(&mut self, first: bool) -> Result<Option<Bits>, Error> {
        let Self { scenario, group, prepared, tensors: [q, k, v, dout] } = self;
        let me = group.rank();
        // Whether the rank stays.
        let stays = |call: usize| match scenario.between {
            Some((rank, at, what)) if first && rank == me && at == call => match what {
                Between::Leaves => false,
                Between::Stalls(time) => {
                    std::thread::sleep(time);
                    true
                }
            },
            _ => true,
        };
        let extents =
            |heads| Extents { batch: 1, seq: prepared.plan().shape.dims().seq_q, heads, head_dim: HEAD_DIM };
        let (eq, ek) = (extents(HEADS.0), extents(HEADS.1));
        let attention = CpAttention::new(Options::default())?;
        let qkv = ForwardInputs { q: View4::bshd(q, eq)?, k: View4::bshd(k, ek)?, v: View4::bshd(v, ek)? };
        let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; eq.heads * eq.seq]);
        if !stays(0) {
            return Ok(None);
        }
        let outputs = ForwardOutputs { o: View4Mut::bshd(&mut o, eq)?, lse: &mut lse };
        attention.forward(group, prepared, qkv, outputs)?;
        if !stays(1) {
            return Ok(None);
        }
        let mut grads = [q.clone(), k.clone(), v.clone()];
        let [dq, dk, dv] = &mut grads;
        let inputs = BackwardInputs { qkv, o: View4::bshd(&o, eq)?, lse: &lse, dout: View4::bshd(dout, eq)? };
        let views = Gradients {
            dq: View4Mut::bshd(dq, eq)?,
            dk: View4Mut::bshd(dk, ek)?,
            dv: View4Mut::bshd(dv, ek)?,
        };
        attention.backward(group, prepared, inputs, views)?;
        if !stays(2) {
            return Ok(None);
        }
        group.barrier()?;
        let all = [&o, &lse].into_iter().chain(&grads).flatten();
        Ok(Some(all.map(|value| value.to_bits()).collect()))
    }

    fn panics(&self, me: Pe) -> bool {
        let misstep = self.scenario.faults.misstep;
        misstep.is_some_and(|misstep| misstep.rank == me && misstep.wrong == Wrong::Panics)
    }

    /// The promises about an error: it names who, whom and where, and came in time.
    fn check(&self, error: &Error, after: Duration) -> Result<(), String> {
        let Scenario { deadline, faults, between, .. } = *self.scenario;
        let me = self.group.rank();
        let stalled = match (faults.misstep.map(|misstep| misstep.wrong), between) {
            (Some(Wrong::Stalls(time)), _) | (_, Some((_, _, Between::Stalls(time)))) => time,
            _ => Duration::ZERO,
        };
        // A collective waits for two deadlines; whoever stalls comes so much later.
        let most = 2 * deadline + stalled + SLACK;
        if after > most {
            return Err(format!("{me} returned after {after:?}, allowed are {most:?}: {error}"));
        }
        let (Error::Overlap(cp_overlap::Error::Fabric(cause)) | Error::Fabric(cause)) = error else {
            return Err(format!("{me} got an error that is not about ranks: {error}"));
        };
        let wrong = faults.misstep.map(|misstep| misstep.wrong);
        let named = match cause {
            Symm::Timeout(report) | Symm::Aborted { report, .. } => !report.label.stage.is_empty(),
            Symm::Missing { missing, .. } => *missing != me,
            Symm::Injected { .. } => wrong == Some(Wrong::Fails),
            Symm::Corrupt { .. } => wrong == Some(Wrong::Corrupt),
            // The second of two puts may meet the reader of the first.
            Symm::Conflict { .. } => wrong == Some(Wrong::Twice),
            _ => false,
        };
        if named { Ok(()) } else { Err(format!("{me} got an error that names nobody: {error:?}")) }
    }
}
