//! Whole tensors over a host world: scatter, run every rank as a thread, gather. For files, demos and tests.
use cp_overlap::RankPlan;
use cp_overlap::tensors::{SeqAxis, gather, scatter};
use fm3_kernels::view::Extents;
use fm3_kernels::{Element, FlashMask, View4, View4Mut};
use symm_buffer::Pe;
use symm_buffer::host::{self, HostConfig, HostFabric};

use crate::{
    BackwardInputs, CallReport, Config, CpAttention, CpGroup, CpShape, Error, ForwardInputs, ForwardOutputs,
    Gradients, Options, Prepared, Sharding,
};

/// A problem and how to run it.
#[derive(Clone, Copy, Debug)]
pub struct WholeProblem<'a> {
    /// The global mask.
    pub mask: &'a FlashMask,
    /// Sizes and element type.
    pub shape: CpShape,
    /// Who owns which rows; also says how many ranks there are.
    pub sharding: &'a Sharding,
    /// Options of the calls.
    pub options: Options,
    /// Settings of the group.
    pub config: &'a Config,
    /// The emulated machine.
    pub host: &'a HostConfig,
}

/// Dense [b, s, h, d] tensors of the whole sequence.
#[derive(Clone, Copy, Debug)]
pub struct WholeInputs<'a, T> {
    /// Queries.
    pub q: &'a [T],
    /// Keys.
    pub k: &'a [T],
    /// Values.
    pub v: &'a [T],
    /// dO; without it there is no backward.
    pub dout: Option<&'a [T]>,
}

/// Outputs of the whole sequence, and what each rank reports.
#[derive(Clone, Debug)]
pub struct WholeOutputs<T> {
    /// O [b, s, hq, d].
    pub o: Vec<T>,
    /// LSE [b, hq, s].
    pub lse: Vec<f32>,
    /// Gradients, if dO was given.
    pub gradients: Option<WholeGradients<T>>,
    /// One per rank.
    pub ranks: Vec<RankOutcome>,
}

/// Gradients of the whole sequence.
#[derive(Clone, Debug)]
pub struct WholeGradients<T> {
    /// dQ [b, s, hq, d].
    pub dq: Vec<T>,
    /// dK [b, s, hkv, d].
    pub dk: Vec<T>,
    /// dV [b, s, hkv, d].
    pub dv: Vec<T>,
}

/// What one rank planned and did.
#[derive(Clone, Debug)]
pub struct RankOutcome {
    /// Its plan.
    pub plan: RankPlan,
    /// Its forward call.
    pub forward: CallReport,
    /// Its backward call.
    pub backward: Option<CallReport>,
}

/// The failure of one rank.
#[derive(Debug)]
pub struct RankFailure {
    /// Which rank.
    pub rank: Pe,
    /// Why.
    pub error: Box<Error>,
}

/// Runs the forward, and with dO the backward, on one thread per rank.
///
/// # Errors
/// [`Error::Ranks`] with what every failing rank returned; [`Error::Overlap`] when tensors do not fit the shape.
pub fn run<T: Element>(
    problem: WholeProblem<'_>,
    inputs: WholeInputs<'_, T>,
) -> Result<WholeOutputs<T>, Error> {
    let locals = Locals::scatter(&problem, inputs)?;
    let world = problem.sharding.world();
    let results = host::try_run(world, *problem.host, |fabric| run_rank(&problem, &locals, fabric))?;
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for (rank, result) in world.ranks().zip(results) {
        match result {
            Ok(output) => done.push(output),
            Err(error) => failures.push(RankFailure { rank, error: Box::new(error) }),
        }
    }
    if failures.is_empty() { collect(&problem, done) } else { Err(Error::Ranks { failures }) }
}

struct Locals<T> {
    q: Vec<Vec<T>>,
    k: Vec<Vec<T>>,
    v: Vec<Vec<T>>,
    dout: Option<Vec<Vec<T>>>,
}

impl<T: Element> Locals<T> {
    fn scatter(problem: &WholeProblem<'_>, inputs: WholeInputs<'_, T>) -> Result<Self, Error> {
        let (queries, keys) = axes(problem);
        let cut = |axis, tensor| scatter(problem.sharding, axis, tensor);
        Ok(Self {
            q: cut(queries, inputs.q)?,
            k: cut(keys, inputs.k)?,
            v: cut(keys, inputs.v)?,
            dout: inputs.dout.map(|dout| cut(queries, dout)).transpose()?,
        })
    }
}

fn axes(problem: &WholeProblem<'_>) -> (SeqAxis, SeqAxis) {
    let CpShape { batch, heads_q, heads_kv, head_dim, .. } = problem.shape;
    let axis = |heads: usize| SeqAxis { outer: batch, inner: heads * head_dim };
    (axis(heads_q), axis(heads_kv))
}

struct RankOutput<T> {
    o: Vec<T>,
    lse: Vec<f32>,
    gradients: Option<WholeGradients<T>>,
    outcome: RankOutcome,
}

fn run_rank<T: Element>(
    problem: &WholeProblem<'_>,
    locals: &Locals<T>,
    fabric: HostFabric,
) -> Result<RankOutput<T>, Error> {
    let mut group = CpGroup::join(fabric, problem.config.clone())?;
    let prepared = group.prepare(problem.mask, problem.shape, problem.sharding)?;
    let attention = CpAttention::new(problem.options)?;
    let rank = group.rank().index();
    let (query, key) = extents(&prepared);
    let qkv = ForwardInputs {
        q: View4::bshd(&locals.q[rank], query)?,
        k: View4::bshd(&locals.k[rank], key)?,
        v: View4::bshd(&locals.v[rank], key)?,
    };
    let mut o = vec![T::from_f32(0.0); locals.q[rank].len()];
    let mut lse = vec![0.0; query.batch * query.heads * query.seq];
    // Ranks begin together, so that what a report calls exposed is not the start of a neighbour's thread.
    group.barrier()?;
    let outputs = ForwardOutputs { o: View4Mut::bshd(&mut o, query)?, lse: &mut lse };
    let forward = attention.forward(&mut group, &prepared, qkv, outputs)?;
    let mut outcome = RankOutcome { plan: prepared.plan().clone(), forward, backward: None };
    let mut gradients = None;
    if let Some(dout) = &locals.dout {
        let dout = View4::bshd(&dout[rank], query)?;
        let inputs = BackwardInputs { qkv, o: View4::bshd(&o, query)?, lse: &lse, dout };
        group.barrier()?;
        let (grads, report) = backward(&attention, &mut group, &prepared, inputs)?;
        gradients = Some(grads);
        outcome.backward = Some(report);
    }
    group.close()?;
    Ok(RankOutput { o, lse, gradients, outcome })
}

fn backward<T: Element>(
    attention: &CpAttention,
    group: &mut CpGroup,
    prepared: &Prepared,
    inputs: BackwardInputs<'_, T>,
) -> Result<(WholeGradients<T>, CallReport), Error> {
    let (query, key) = extents(prepared);
    let zeros = |e: Extents| vec![T::from_f32(0.0); e.batch * e.seq * e.heads * e.head_dim];
    let mut grads = WholeGradients { dq: zeros(query), dk: zeros(key), dv: zeros(key) };
    let views = Gradients {
        dq: View4Mut::bshd(&mut grads.dq, query)?,
        dk: View4Mut::bshd(&mut grads.dk, key)?,
        dv: View4Mut::bshd(&mut grads.dv, key)?,
    };
    let report = attention.backward(group, prepared, inputs, views)?;
    Ok((grads, report))
}

fn extents(prepared: &Prepared) -> (Extents, Extents) {
    let dims = prepared.plan().shape.dims();
    let of = |heads| Extents { batch: dims.batch, seq: dims.seq_q, heads, head_dim: dims.head_dim };
    (of(dims.heads_q), of(dims.heads_kv))
}

fn collect<T: Element>(
    problem: &WholeProblem<'_>,
    ranks: Vec<RankOutput<T>>,
) -> Result<WholeOutputs<T>, Error> {
    let (queries, keys) = axes(problem);
    let CpShape { batch, heads_q, .. } = problem.shape;
    let sharding = problem.sharding;
    let o: Vec<&[T]> = ranks.iter().map(|rank| rank.o.as_slice()).collect();
    let lse: Vec<&[f32]> = ranks.iter().map(|rank| rank.lse.as_slice()).collect();
    let o = gather(sharding, queries, &o)?;
    let lse = gather(sharding, SeqAxis { outer: batch * heads_q, inner: 1 }, &lse)?;
    let grads: Vec<&WholeGradients<T>> = ranks.iter().filter_map(|rank| rank.gradients.as_ref()).collect();
    let join = |axis, part: fn(&WholeGradients<T>) -> &[T]| {
        gather(sharding, axis, &grads.iter().map(|grads| part(grads)).collect::<Vec<_>>())
    };
    let gradients = match grads.is_empty() {
        true => None,
        false => Some(WholeGradients {
            dq: join(queries, |g| &g.dq)?,
            dk: join(keys, |g| &g.dk)?,
            dv: join(keys, |g| &g.dv)?,
        }),
    };
    Ok(WholeOutputs { o, lse, gradients, ranks: ranks.into_iter().map(|rank| rank.outcome).collect() })
}
