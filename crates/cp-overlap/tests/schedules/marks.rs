//! A computation that only checks: every row of K, V, dK, dV holds a mark that says whose it is and of which call.
use std::sync::Arc;

use cp_overlap::exec::{SourceTensor, Sources};
use cp_overlap::plan::{KvBlock, RankPlan, Stage};
use cp_overlap::{Compute, Error, PairSpans, Readiness};
use fm3_kernels::view::Strides;
use symm_buffer::{Fabric, Pe, Span};

/// One call of one rank.
pub(crate) struct Marks<F> {
    fabric: Arc<F>,
    call: u64,
    size: usize,
    reduced: usize,
}

/// K or V, or their gradients.
#[derive(Clone, Copy)]
enum Tensor {
    K,
    V,
}

/// Whose rows: K, V of a rank, or what `from` adds to them.
#[derive(Clone, Copy)]
struct Author {
    owner: Pe,
    from: Pe,
}

impl<F: Fabric> Marks<F> {
    pub(crate) fn new(fabric: Arc<F>, call: u64, size: usize) -> Self {
        Self { fabric, call, size, reduced: 0 }
    }

    /// K and V of this rank, dense [b, s, h, d].
    pub(crate) fn local(&self, plan: &RankPlan) -> [Vec<u8>; 2] {
        let dims = plan.shape.dims();
        let author = Author { owner: plan.rank, from: plan.rank };
        [Tensor::K, Tensor::V].map(|tensor| {
            let rows = (0..dims.seq_q).flat_map(|row| (0..dims.heads_kv).map(move |head| (row, head)));
            rows.flat_map(|(row, head)| {
                let mark = self.mark(author, tensor, (row, head)) as u16;
                std::iter::repeat_n(mark.to_ne_bytes(), dims.head_dim).flatten()
            })
            .collect()
        })
    }

    pub(crate) fn sources<'m>(&self, plan: &RankPlan, memory: &'m [Vec<u8>; 2]) -> Sources<&'m [u8]> {
        let dims = plan.shape.dims();
        let row = dims.heads_kv * dims.head_dim;
        let strides = Strides { batch: dims.seq_q * row, seq: row, heads: dims.head_dim };
        let [k, v] = memory;
        Sources { k: SourceTensor { memory: k, strides }, v: SourceTensor { memory: v, strides } }
    }

    /// A number that nothing else in the case has, but for chance.
    fn mark(&self, author: Author, tensor: Tensor, (row, head): (usize, usize)) -> u32 {
        let parts = [
            u64::from(author.owner.0),
            u64::from(author.from.0),
            self.call,
            self.size as u64,
            tensor as u64,
            row as u64,
            head as u64,
        ];
        let hash = parts.into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, part| {
            (hash ^ part).wrapping_mul(0x100_0000_01b3).rotate_left(17)
        });
        (hash >> 32) as u32
    }

    /// Compares needed rows, of `width` bytes an element, with their marks.
    fn check(
        &self,
        what: &str,
        block: &KvBlock,
        author: Author,
        spans: PairSpans,
        width: usize,
    ) -> Result<(), Error> {
        for (tensor, span) in [(Tensor::K, spans.k), (Tensor::V, spans.v)] {
            let bytes = self.fabric.load(span)?;
            for (at, row, head) in self.elements(block, span, width) {
                let mark = self.mark(author, tensor, (row, head)).to_ne_bytes();
                let low = (self.mark(author, tensor, (row, head)) as u16).to_ne_bytes();
                let expected: &[u8] = if width == 2 { &low } else { &mark };
                if bytes[at..at + width] != *expected {
                    let reason = format!(
                        "{what} of {} from {} in call {}: row {row} head {head} is not its own",
                        author.owner, author.from, self.call
                    );
                    return Err(self.wrong(reason));
                }
            }
        }
        Ok(())
    }

    /// First byte, row and head of each needed row; batches of one.
    fn elements(&self, block: &KvBlock, span: Span, width: usize) -> Vec<(usize, usize, usize)> {
        let row_bytes = span.len / block.rows.len();
        let head_bytes = row_bytes / block.heads.len();
        debug_assert!(head_bytes >= width && block.needed.len() == 1);
        let rows = block.needed[0].iter().flat_map(Clone::clone);
        let place = |row: usize, head: usize| {
            (row - block.rows.start) * row_bytes + (head - block.heads.start) * head_bytes
        };
        rows.flat_map(|row| block.heads.clone().map(move |head| (place(row, head), row, head))).collect()
    }

    fn wrong(&self, reason: String) -> Error {
        Error::Compute { call: "marks", rank: self.fabric.me(), source: reason.into() }
    }

    fn piece(&self, plan: &RankPlan, index: usize, arrived: Option<PairSpans>) -> Result<(), Error> {
        let Some(spans) = arrived else { return Ok(()) };
        let piece = &plan.forward.pieces[index];
        let author = Author { owner: piece.owner, from: piece.owner };
        self.check("K, V", &piece.block, author, spans, 2)
    }

    fn attend_backward(
        &mut self,
        plan: &RankPlan,
        index: usize,
        ready: &mut dyn Readiness,
    ) -> Result<(), Error> {
        let arrived = ready.piece(index)?;
        let piece = &plan.backward.pieces[index];
        if let Some(spans) = arrived {
            let author = Author { owner: piece.owner, from: piece.owner };
            self.check("K, V", &piece.block, author, spans, 2)?;
        }
        let Some(out) = ready.partial_out(index)? else { return Ok(()) };
        let author = Author { owner: piece.owner, from: plan.rank };
        for (tensor, span) in [(Tensor::K, out.k), (Tensor::V, out.v)] {
            let mut bytes = vec![0xFF; span.len];
            for (at, row, head) in self.elements(&piece.block, span, 4) {
                bytes[at..at + 4].copy_from_slice(&self.mark(author, tensor, (row, head)).to_ne_bytes());
            }
            self.fabric.store(span, &bytes)?;
        }
        ready.partial_done(index)
    }
}

impl<F: Fabric> Compute for Marks<F> {
    fn forward(&mut self, plan: &RankPlan, ready: &mut dyn Readiness) -> Result<(), Error> {
        for stage in &plan.forward.stages {
            let Stage::Attend(index) = *stage else { continue };
            let arrived = ready.piece(index)?;
            self.piece(plan, index, arrived)?;
        }
        Ok(())
    }

    fn backward(&mut self, plan: &RankPlan, ready: &mut dyn Readiness) -> Result<(), Error> {
        for stage in &plan.backward.stages {
            match *stage {
                Stage::Attend(index) => self.attend_backward(plan, index, ready)?,
                Stage::Reduce(index) => {
                    let spans = ready.partial_in(index)?;
                    let reduce = &plan.backward.reduces[index];
                    let author = Author { owner: plan.rank, from: reduce.from };
                    self.check("dK, dV", &reduce.block, author, spans, 4)?;
                    self.reduced += 1;
                }
            }
        }
        match self.reduced == plan.backward.reduces.len() {
            true => Ok(()),
            false => Err(self.wrong("a partial was not added exactly once".to_owned())),
        }
    }
}
