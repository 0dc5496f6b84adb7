//! Forward and backward over a group, on strided views of this rank's rows.
use cp_overlap::exec::{CallSpec, SourceTensor, Sources};
use fm3_kernels::view::Extents;
use fm3_kernels::{Element, View4, View4Mut};
use xxhash_rust::xxh3::xxh3_64;

use crate::cpu::{CpuCompute, Job};
use crate::{CallReport, CpGroup, Error, PassKind, Prepared};

/// Choices of one kind of call; the same on every rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// Softmax scale; `None` is 1/sqrt(head_dim).
    pub scale: Option<f32>,
}

/// Context-parallel attention with given options. Holds no state: groups and preparations are arguments.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpAttention {
    options: Options,
}

/// Local inputs of the forward: q [b, s_local, hq, d], k and v [b, s_local, hkv, d], any strides with the head dim
/// innermost ([`View4::bshd`], [`View4::bhsd`], packed QKV).
#[derive(Clone, Copy, Debug)]
pub struct ForwardInputs<'a, T> {
    /// Queries.
    pub q: View4<'a, T>,
    /// Keys; peers' needs are read from here in place.
    pub k: View4<'a, T>,
    /// Values; as `k`.
    pub v: View4<'a, T>,
}

/// Local outputs of the forward.
#[derive(Debug)]
pub struct ForwardOutputs<'a, T> {
    /// O [b, s_local, hq, d].
    pub o: View4Mut<'a, T>,
    /// Log-sum-exp, natural logarithm, dense [b, hq, s_local]; -inf for rows that see nothing.
    pub lse: &'a mut [f32],
}

/// Local inputs of the backward: the forward's inputs and outputs, and dO.
#[derive(Clone, Copy, Debug)]
pub struct BackwardInputs<'a, T> {
    /// The forward's inputs.
    pub qkv: ForwardInputs<'a, T>,
    /// O of the forward.
    pub o: View4<'a, T>,
    /// LSE of the forward, [b, hq, s_local].
    pub lse: &'a [f32],
    /// Gradient of O, [b, s_local, hq, d].
    pub dout: View4<'a, T>,
}

/// Local gradients; summed in f32 over all ranks in a fixed order and rounded once.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// dQ [b, s_local, hq, d].
    pub dq: View4Mut<'a, T>,
    /// dK [b, s_local, hkv, d].
    pub dk: View4Mut<'a, T>,
    /// dV [b, s_local, hkv, d].
    pub dv: View4Mut<'a, T>,
}

impl CpAttention {
    /// Attention with `options`.
    ///
    /// # Errors
    /// [`Error::Scale`] when the scale is not finite.
    pub fn new(options: Options) -> Result<Self, Error> {
        match options.scale {
            Some(scale) if !scale.is_finite() => Err(Error::Scale { call: "CpAttention::new", scale }),
            _ => Ok(Self { options }),
        }
    }

    /// O and LSE of this rank's rows. Collective; returns when they are written.
    ///
    /// # Errors
    /// [`Error::TensorShape`], [`Error::DTypeMismatch`], [`Error::WrongGroup`], [`Error::ForeignPreparation`], and
    /// [`Error::WrongBackend`] for a group on GPUs, before anything is sent; [`Error::Overlap`] when a peer does not come in time or runs another plan.
    pub fn forward<T: Element>(
        &self,
        group: &mut CpGroup,
        prepared: &Prepared,
        inputs: ForwardInputs<'_, T>,
        outputs: ForwardOutputs<'_, T>,
    ) -> Result<CallReport, Error> {
        let call = "CpAttention::forward";
        check_call::<T>(call, group, prepared)?;
        check_inputs(call, prepared, &inputs)?;
        check_extents(call, prepared, ("o", outputs.o.extents(), Heads::Query))?;
        check_lse(call, prepared, outputs.lse.len())?;
        self.run(group, prepared, inputs, Job::Forward(outputs))
    }

    /// dQ, dK and dV of this rank's rows. Collective; returns when they are written.
    ///
    /// # Errors
    /// As [`CpAttention::forward`].
    pub fn backward<T: Element>(
        &self,
        group: &mut CpGroup,
        prepared: &Prepared,
        inputs: BackwardInputs<'_, T>,
        gradients: Gradients<'_, T>,
    ) -> Result<CallReport, Error> {
        let call = "CpAttention::backward";
        check_call::<T>(call, group, prepared)?;
        check_inputs(call, prepared, &inputs.qkv)?;
        for (name, extents, heads) in [
            ("o", inputs.o.extents(), Heads::Query),
            ("dout", inputs.dout.extents(), Heads::Query),
            ("dq", gradients.dq.extents(), Heads::Query),
            ("dk", gradients.dk.extents(), Heads::Kv),
            ("dv", gradients.dv.extents(), Heads::Kv),
        ] {
            check_extents(call, prepared, (name, extents, heads))?;
        }
        check_lse(call, prepared, inputs.lse.len())?;
        self.run(group, prepared, inputs.qkv, Job::Backward(inputs, gradients))
    }

    pub(crate) fn scale(&self, prepared: &Prepared) -> f32 {
        self.options.scale.unwrap_or_else(|| prepared.plan().shape.default_scale())
    }

    fn run<T: Element>(
        &self,
        group: &mut CpGroup,
        prepared: &Prepared,
        inputs: ForwardInputs<'_, T>,
        job: Job<'_, T>,
    ) -> Result<CallReport, Error> {
        let scale = self.scale(prepared);
        let pass = match job {
            Job::Forward(..) => PassKind::Forward,
            Job::Backward(..) => PassKind::Backward,
        };
        let sources = Sources { k: source(&inputs.k), v: source(&inputs.v) };
        let spec = CallSpec { pass, plan: prepared.plan(), options: options_hash(scale) };
        let session = group.host(pass.name())?;
        let heap = session.fabric().clone();
        let mut compute = CpuCompute::new((prepared, heap), scale, inputs, job);
        Ok(session.run(spec, sources, &mut compute)?)
    }
}

fn source<'a, T: Element>(view: &View4<'a, T>) -> SourceTensor<&'a [u8]> {
    SourceTensor { memory: bytemuck::cast_slice(view.data()), strides: view.strides() }
}

/// Hash of what ranks must give alike beside the plan.
pub(crate) fn options_hash(scale: f32) -> u64 {
    xxh3_64(&scale.to_bits().to_le_bytes())
}

#[derive(Clone, Copy)]
pub(crate) enum Heads {
    Query,
    Kv,
}

/// That it was prepared for this rank of as many ranks.
pub(crate) fn check_group(call: &'static str, group: &CpGroup, prepared: &Prepared) -> Result<(), Error> {
    let (rank, world) = (group.rank(), group.world().size());
    if prepared.rank() != rank || prepared.world() != world {
        let (prepared_rank, prepared_world) = (prepared.rank(), prepared.world());
        return Err(Error::WrongGroup { call, prepared_rank, prepared_world, rank, world });
    }
    Ok(())
}

fn check_call<T: Element>(call: &'static str, group: &mut CpGroup, prepared: &Prepared) -> Result<(), Error> {
    group.host(call)?;
    check_group(call, group, prepared)?;
    if !prepared.is_for_host() {
        return Err(Error::ForeignPreparation { call });
    }
    let (given, made_for) = (T::DTYPE, prepared.plan().dtype);
    if given != made_for {
        return Err(Error::DTypeMismatch { call, given, prepared: made_for });
    }
    Ok(())
}

fn check_inputs<T>(
    call: &'static str,
    prepared: &Prepared,
    inputs: &ForwardInputs<'_, T>,
) -> Result<(), Error> {
    check_extents(call, prepared, ("q", inputs.q.extents(), Heads::Query))?;
    check_extents(call, prepared, ("k", inputs.k.extents(), Heads::Kv))?;
    check_extents(call, prepared, ("v", inputs.v.extents(), Heads::Kv))
}

pub(crate) fn check_extents(
    call: &'static str,
    prepared: &Prepared,
    (name, given, heads): (&'static str, Extents, Heads),
) -> Result<(), Error> {
    let dims = prepared.plan().shape.dims();
    let heads = match heads {
        Heads::Query => dims.heads_q,
        Heads::Kv => dims.heads_kv,
    };
    let expected = [dims.batch, dims.seq_q, heads, dims.head_dim];
    let given = [given.batch, given.seq, given.heads, given.head_dim];
    if given == expected { Ok(()) } else { Err(Error::TensorShape { call, name, given, expected }) }
}

pub(crate) fn check_lse(call: &'static str, prepared: &Prepared, len: usize) -> Result<(), Error> {
    let dims = prepared.plan().shape.dims();
    let expected = [dims.batch, dims.heads_q, dims.seq_q, 1];
    if len == expected.iter().product::<usize>() {
        return Ok(());
    }
    Err(Error::TensorShape { call, name: "lse ([b, h, s])", given: [len, 1, 1, 1], expected })
}
