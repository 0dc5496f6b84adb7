//! The CPU engine as a [`Compute`]: reads arrived pieces in place from this rank's heap.
use std::sync::Arc;

use bytemuck::Pod;
use cp_overlap::plan::{KvBlock, Pass, Piece, RankPlan, Reduce, Stage};
use cp_overlap::{Compute, Error, PairSpans, Readiness};
use fm3_kernels::cpu::{Backward, Forward, KeyGrads, Keys, Problem, Saved};
use fm3_kernels::view::{At, Extents, Part};
use fm3_kernels::{Element, View4, View4Mut};
use rayon::prelude::*;
use symm_buffer::host::HostFabric;

use crate::attention::{BackwardInputs, ForwardInputs, ForwardOutputs, Gradients};
use crate::prepared::Prepared;

/// One pass of one rank.
pub(crate) struct CpuCompute<'a, T> {
    prepared: &'a Prepared,
    heap: Arc<HostFabric>,
    scale: f32,
    inputs: ForwardInputs<'a, T>,
    job: Option<Job<'a, T>>,
}

/// Which pass, with what only it needs. Taken when it runs.
#[expect(clippy::large_enum_variant, reason = "one per call, on the stack")]
pub(crate) enum Job<'a, T> {
    Forward(ForwardOutputs<'a, T>),
    Backward(BackwardInputs<'a, T>, Gradients<'a, T>),
}

impl<'a, T: Element> CpuCompute<'a, T> {
    pub(crate) fn new(
        (prepared, heap): (&'a Prepared, Arc<HostFabric>),
        scale: f32,
        inputs: ForwardInputs<'a, T>,
        job: Job<'a, T>,
    ) -> Self {
        Self { prepared, heap, scale, inputs, job: Some(job) }
    }

    fn problem(&self) -> Problem<'a, T> {
        let prepared = self.prepared;
        Problem { shape: prepared.plan().shape, mask: prepared.mask(), scale: self.scale, q: self.inputs.q }
    }

    fn failed(
        &self,
        call: &'static str,
    ) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> Error + use<'a, T> {
        let rank = self.prepared.rank();
        move |source| Error::Compute { call, rank, source }
    }

    /// Lends the keys of a piece to `body`: local ones from the caller's tensors, remote ones from the heap.
    fn with_keys<R>(
        &self,
        plan: &RankPlan,
        piece: &Piece,
        arrived: Option<PairSpans>,
        body: impl FnOnce(&Keys<'_, T>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let block = &piece.block;
        let first_column = plan.segments[piece.segment].first_column + block.rows.start;
        let first_head = block.heads.start;
        let Some(spans) = arrived else {
            let part = Part { rows: block.rows.clone(), heads: block.heads.clone() };
            let (k, v) = (self.inputs.k.part(part.clone())?, self.inputs.v.part(part)?);
            return body(&Keys { k, v, first_column, first_head });
        };
        let extents = extents(plan, block);
        let (k, v) = (self.heap.read(spans.k)?, self.heap.read(spans.v)?);
        let k = View4::bshd(self.elements(&k)?, extents)?;
        let v = View4::bshd(self.elements(&v)?, extents)?;
        body(&Keys { k, v, first_column, first_head })
    }

    fn elements<'h, E: Pod>(&self, bytes: &'h [u8]) -> Result<&'h [E], Error> {
        bytemuck::try_cast_slice(bytes).map_err(|error| self.failed("heap")(error.to_string().into()))
    }

    fn run_forward(
        &self,
        plan: &RankPlan,
        mut outputs: ForwardOutputs<'a, T>,
        ready: &mut dyn Readiness,
    ) -> Result<(), Error> {
        let mut engine = Forward::new(self.problem())?;
        for stage in &plan.forward.stages {
            let Stage::Attend(index) = *stage else { continue };
            let piece = &plan.forward.pieces[index];
            let arrived = ready.piece(index)?;
            let _span = attend_span(piece, index);
            let blocks = self.prepared.blocks(piece.segment);
            self.with_keys(plan, piece, arrived, |keys| Ok(engine.attend(keys, blocks)?))?;
        }
        Ok(engine.finish(&mut outputs.o, outputs.lse)?)
    }

    fn run_backward(
        &self,
        plan: &RankPlan,
        (inputs, mut grads): (BackwardInputs<'a, T>, Gradients<'a, T>),
        ready: &mut dyn Readiness,
    ) -> Result<(), Error> {
        let saved = Saved { o: inputs.o, dout: inputs.dout, lse: inputs.lse };
        let mut engine = Backward::new(self.problem(), saved)?;
        let mut local = LocalGrads::new(plan);
        for stage in &plan.backward.stages {
            match *stage {
                Stage::Attend(index) => {
                    self.attend_backward(plan, index, (&mut engine, &mut local), ready)?
                }
                Stage::Reduce(index) => {
                    let spans = ready.partial_in(index)?;
                    let (dk, dv) = (self.heap.read(spans.k)?, self.heap.read(spans.v)?);
                    local.add(&plan.backward.reduces[index], self.elements(&dk)?, self.elements(&dv)?);
                }
            }
        }
        local.store(&mut grads)?;
        Ok(engine.finish(&mut grads.dq)?)
    }

    fn attend_backward(
        &self,
        plan: &RankPlan,
        index: usize,
        (engine, local): (&mut Backward<'a, T>, &mut LocalGrads),
        ready: &mut dyn Readiness,
    ) -> Result<(), Error> {
        let Pass { pieces, .. } = &plan.backward;
        let piece = &pieces[index];
        let arrived = ready.piece(index)?;
        let span = attend_span(piece, index);
        let blocks = self.prepared.blocks(piece.segment);
        let Some(out) = ready.partial_out(index)? else {
            let grads = local.part(&piece.block)?;
            return self.with_keys(plan, piece, arrived, |keys| Ok(engine.attend(keys, blocks, grads)?));
        };
        {
            let (mut dk, mut dv) = (self.heap.write(out.k)?, self.heap.write(out.v)?);
            let cast = |error: bytemuck::PodCastError| self.failed("heap")(error.to_string().into());
            let dk: &mut [f32] = bytemuck::try_cast_slice_mut(&mut dk).map_err(cast)?;
            let dv: &mut [f32] = bytemuck::try_cast_slice_mut(&mut dv).map_err(cast)?;
            let extents = extents(plan, &piece.block);
            let grads = KeyGrads { dk: View4Mut::bshd(dk, extents)?, dv: View4Mut::bshd(dv, extents)? };
            self.with_keys(plan, piece, arrived, |keys| Ok(engine.attend(keys, blocks, grads)?))?;
        }
        drop(span);
        ready.partial_done(index)
    }
}

impl<T: Element> Compute for CpuCompute<'_, T> {
    fn forward(&mut self, plan: &RankPlan, ready: &mut dyn Readiness) -> Result<(), Error> {
        match self.job.take() {
            Some(Job::Forward(outputs)) => self.run_forward(plan, outputs, ready),
            _ => {
                Err(self.failed("forward")("this computation was set up for another pass, or has run".into()))
            }
        }
    }

    fn backward(&mut self, plan: &RankPlan, ready: &mut dyn Readiness) -> Result<(), Error> {
        match self.job.take() {
            Some(Job::Backward(inputs, grads)) => self.run_backward(plan, (inputs, grads), ready),
            _ => Err(self.failed("backward")(
                "this computation was set up for another pass, or has run".into(),
            )),
        }
    }
}

fn attend_span(piece: &Piece, index: usize) -> tracing::span::EnteredSpan {
    let block = &piece.block;
    tracing::debug_span!("attend", piece = index, owner = piece.owner.0, heads = ?block.heads, rows = ?block.rows)
        .entered()
}

fn extents(plan: &RankPlan, block: &KvBlock) -> Extents {
    let dims = plan.shape.dims();
    Extents { batch: dims.batch, seq: block.rows.len(), heads: block.heads.len(), head_dim: dims.head_dim }
}

/// dK and dV of this rank's own keys in f32, [b, s_local, hkv, d], until they are rounded once.
struct LocalGrads {
    dk: Vec<f32>,
    dv: Vec<f32>,
    extents: Extents,
}

impl LocalGrads {
    fn new(plan: &RankPlan) -> Self {
        let dims = plan.shape.dims();
        let extents =
            Extents { batch: dims.batch, seq: dims.seq_q, heads: dims.heads_kv, head_dim: dims.head_dim };
        let len = dims.batch * dims.seq_q * dims.heads_kv * dims.head_dim;
        Self { dk: vec![0.0; len], dv: vec![0.0; len], extents }
    }

    fn part(&mut self, block: &KvBlock) -> Result<KeyGrads<'_>, Error> {
        let part = Part { rows: block.rows.clone(), heads: block.heads.clone() };
        let dk = View4Mut::bshd(&mut self.dk, self.extents)?.into_part(part.clone())?;
        let dv = View4Mut::bshd(&mut self.dv, self.extents)?.into_part(part)?;
        Ok(KeyGrads { dk, dv })
    }

    /// Adds one peer's partial, dense [b, rows, heads, d]; rows that were not sent are not read.
    fn add(&mut self, reduce: &Reduce, dk: &[f32], dv: &[f32]) {
        let (block, e) = (&reduce.block, self.extents);
        let (row_len, first) = (e.heads * e.head_dim, block.heads.start * e.head_dim);
        let width = block.heads.len() * e.head_dim;
        for (batch, runs) in block.needed.iter().enumerate() {
            for run in runs {
                let mine = (batch * e.seq + run.start) * row_len..(batch * e.seq + run.end) * row_len;
                let theirs = (batch * block.rows.len() + run.start - block.rows.start) * width;
                for (sum, partial) in [(&mut self.dk, dk), (&mut self.dv, dv)] {
                    let rows = sum[mine.clone()].par_chunks_mut(row_len);
                    let partial = partial[theirs..theirs + run.len() * width].par_chunks(width);
                    rows.zip(partial).for_each(|(row, partial)| {
                        let row = &mut row[first..first + width];
                        row.iter_mut().zip(partial).for_each(|(sum, partial)| *sum += partial);
                    });
                }
            }
        }
    }

    /// The one rounding.
    fn store<T: Element>(&self, grads: &mut Gradients<'_, T>) -> Result<(), Error> {
        for (from, to) in [(&self.dk, &mut grads.dk), (&self.dv, &mut grads.dv)] {
            let from = View4::bshd(from, self.extents)?;
            for batch in 0..self.extents.batch {
                for seq in 0..self.extents.seq {
                    for head in 0..self.extents.heads {
                        let at = At { batch, seq, head };
                        let pairs = to.row_mut(at).iter_mut().zip(from.row(at));
                        pairs.for_each(|(to, from)| *to = T::from_f32(*from));
                    }
                }
            }
        }
        Ok(())
    }
}
