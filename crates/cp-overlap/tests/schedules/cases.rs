//! What runs under the scheduler: problems, calls, deadlines.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cp_overlap::exec::{CallSpec, PassKind, Settings};
use cp_overlap::{CpPlan, Error, Problem, Session, Sharding, Tunables};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::{DType, Dims, FlashMask, Shape};
use shuttle::rand::Rng;
use symm_buffer::host::{HostConfig, HostWorld};
use symm_buffer::{Error as Symm, Fabric, World};

use crate::marks::Marks;
use crate::mutated::{Mutant, Mutated};

/// Never, for a checker.
const LONG: Duration = Duration::from_secs(30);

/// Some ranks and what they do.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) ranks: u32,
    pub(crate) causal: bool,
    /// Passes, each of the small plan or of the one that needs larger buffers.
    pub(crate) calls: &'static [(Size, PassKind)],
    /// If set, each rank runs all calls first with a deadline of up to so many looks, may fail, and then recovers.
    pub(crate) hasty: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    Large,
}

use PassKind::{Backward, Forward};
use Size::{Large, Small};

pub(crate) const CASES: &[Case] = &[
    Case { name: "forward4", ranks: 4, causal: true, calls: &[(Small, Forward); 4], hasty: None },
    Case {
        name: "mixed4",
        ranks: 4,
        causal: true,
        calls: &[(Small, Forward), (Small, Backward), (Large, Backward), (Small, Backward), (Large, Forward)],
        hasty: None,
    },
    Case {
        name: "full4",
        ranks: 4,
        causal: false,
        calls: &[(Small, Forward), (Small, Backward)],
        hasty: None,
    },
    Case {
        name: "mixed8",
        ranks: 8,
        causal: true,
        calls: &[(Small, Forward), (Small, Backward)],
        hasty: None,
    },
    Case {
        name: "late3",
        ranks: 3,
        causal: true,
        calls: &[(Small, Forward), (Large, Backward)],
        hasty: Some(6),
    },
    Case {
        name: "late4",
        ranks: 4,
        causal: false,
        calls: &[(Small, Backward), (Large, Forward)],
        hasty: Some(12),
    },
];

/// Ranks that gave up in a hasty case, over all schedules.
pub(crate) static GAVE_UP: AtomicU64 = AtomicU64::new(0);

/// The plans of a case, small and large.
pub(crate) struct Plans([CpPlan; 2]);

impl Plans {
    pub(crate) fn of(case: &Case) -> Self {
        Self([plan(case, 1), plan(case, 2)])
    }

    fn get(&self, size: Size) -> &CpPlan {
        &self.0[size as usize]
    }
}

fn plan(case: &Case, heads_kv: usize) -> CpPlan {
    let seq = 128 * case.ranks as usize;
    let dims = Dims { batch: 1, heads_q: heads_kv, heads_kv, seq_q: seq, seq_k: seq, head_dim: 8 };
    let mask_dims = MaskDims { batch: 1, heads: 1, seq_q: seq, seq_k: seq };
    let mask = if case.causal { FlashMask::causal(mask_dims) } else { FlashMask::full(mask_dims) };
    let sharding = Sharding::contiguous(seq, World::new(case.ranks).unwrap()).unwrap();
    let tunables = Tunables { heads_per_piece: Some(1), ..Tunables::h200() };
    let shape = Shape::new(dims).unwrap();
    CpPlan::build(&Problem::new(shape, mask.unwrap(), sharding, DType::Bf16, tunables).unwrap()).unwrap()
}

/// Runs a case once, inside shuttle: what went wrong on each rank.
pub(crate) fn run(case: &Case, plans: &Arc<Plans>, mutant: Option<Mutant>) -> Vec<String> {
    let fabrics = HostWorld::new(World::new(case.ranks).unwrap(), HostConfig::default()).unwrap();
    let spawn = |fabric| {
        let (case, plans) = (*case, plans.clone());
        shuttle::thread::spawn(move || rank(&case, &plans, Mutated::new(fabric, mutant)))
    };
    let threads: Vec<_> = fabrics.into_iter().map(spawn).collect();
    let results = threads.into_iter().map(|thread| thread.join().unwrap());
    results.filter_map(|result| result.err().map(|error| error.to_string())).collect()
}

fn rank(case: &Case, plans: &Plans, fabric: Mutated) -> Result<(), Error> {
    let mut session = Session::new(fabric, Settings { deadline: LONG, ..Settings::default() })?;
    if let Some(most) = case.hasty {
        let looks = shuttle::rand::thread_rng().gen_range(1..=most);
        session.set(Settings { deadline: Duration::from_nanos(looks), ..session.settings() });
        match calls(case, plans, &mut session) {
            Ok(()) => {}
            Err(Error::Fabric(error)) if is_late(&error) => _ = GAVE_UP.fetch_add(1, Ordering::Relaxed),
            Err(error) => return Err(error),
        }
        session.set(Settings { deadline: LONG, ..session.settings() });
        session.recover()?;
    }
    calls(case, plans, &mut session)?;
    session.close()
}

/// What a deadline may lead to, on the rank that gives up and on the others.
fn is_late(error: &Symm) -> bool {
    matches!(error, Symm::Timeout(_) | Symm::Aborted { .. } | Symm::Missing { .. } | Symm::Drain { .. })
}

fn calls(case: &Case, plans: &Plans, session: &mut Session<Mutated>) -> Result<(), Error> {
    for (call, (size, pass)) in (0..).zip(case.calls) {
        let plan = &plans.get(*size).ranks[session.fabric().me().index()];
        let mut marks = Marks::new(session.fabric().clone(), call, *size as usize);
        let memory = marks.local(plan);
        let sources = marks.sources(plan, &memory);
        session.run(CallSpec { pass: *pass, plan, options: 0 }, sources, &mut marks)?;
    }
    Ok(())
}
