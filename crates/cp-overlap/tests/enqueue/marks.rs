//! Rows of K and V that say whose they are and of which call.
use cp_overlap::exec::{SourceTensor, Sources};
use cp_overlap::plan::{Piece, RankPlan};
use fm3_kernels::view::Strides;
use symm_buffer::host::HostFabric;
use symm_buffer::{Bytes, Fabric, Pe, RegionId, Span};

use cp_overlap::ReadyWords;

/// Which row of which tensor.
#[derive(Clone, Copy)]
struct Row {
    owner: Pe,
    call: u64,
    tensor: u64,
    batch: usize,
    row: usize,
    head: usize,
}

/// A number that nothing else has, but for chance: two of bf16's bytes are enough to tell calls and rows apart.
fn mark(of: Row) -> [u8; 2] {
    let parts = [u64::from(of.owner.0), of.call, of.tensor, of.batch as u64, of.row as u64, of.head as u64];
    let hash = parts.into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, part| {
        (hash ^ part).wrapping_mul(0x100_0000_01b3).rotate_left(17)
    });
    let bytes = hash.to_le_bytes();
    [bytes[4], bytes[5]]
}

/// How a caller keeps K and V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// [b, s, h, d]
    Bshd,
    /// [b, h, s, d]
    Bhsd,
}

impl Form {
    fn strides(self, plan: &RankPlan) -> Strides {
        let (dims, d) = (plan.shape.dims(), plan.shape.dims().head_dim);
        let batch = dims.seq_q * dims.heads_kv * d;
        match self {
            Self::Bshd => Strides { batch, seq: dims.heads_kv * d, heads: d },
            Self::Bhsd => Strides { batch, seq: d, heads: dims.seq_q * d },
        }
    }
}

/// K and V of one call of one rank.
pub(crate) struct Local {
    memory: [Vec<u8>; 2],
    strides: Strides,
}

impl Local {
    pub(crate) fn new(plan: &RankPlan, call: u64, form: Form) -> Self {
        let (dims, strides) = (plan.shape.dims(), form.strides(plan));
        let memory = [0, 1].map(|tensor| {
            let mut bytes = vec![0; dims.batch * dims.seq_q * dims.heads_kv * dims.head_dim * 2];
            for batch in 0..dims.batch {
                for (row, head) in
                    (0..dims.seq_q).flat_map(|row| (0..dims.heads_kv).map(move |head| (row, head)))
                {
                    let at = 2 * (batch * strides.batch + row * strides.seq + head * strides.heads);
                    let mark = mark(Row { owner: plan.rank, call, tensor, batch, row, head });
                    bytes[at..at + 2 * dims.head_dim]
                        .chunks_exact_mut(2)
                        .for_each(|e| e.copy_from_slice(&mark));
                }
            }
            bytes
        });
        Self { memory, strides }
    }

    pub(crate) fn memory(&self) -> [&[u8]; 2] {
        self.memory.each_ref().map(Vec::as_slice)
    }

    pub(crate) fn sources(&self, regions: &[RegionId]) -> Sources<RegionId> {
        let [k, v] = [regions[0], regions[1]].map(|memory| SourceTensor { memory, strides: self.strides });
        Sources { k, v }
    }
}

/// Compares all needed rows of an arrived piece.
pub(crate) fn check(
    fabric: &HostFabric,
    plan: &RankPlan,
    (piece, call): (&Piece, u64),
    ready: &ReadyWords,
) -> Result<(), String> {
    let (Some(arrival), Some(half)) = (piece.arrival, ready.half) else { return Ok(()) };
    let (block, row_bytes) = (&piece.block, plan.shape.dims().head_dim * 2 * piece.block.heads.len());
    for (tensor, Bytes(place)) in (0..).zip([arrival.k, arrival.v]) {
        let span = Span { offset: half.offset + place, len: plan.kv_bytes(block).0, ..half };
        let bytes = fabric.load(span).map_err(|error| error.to_string())?;
        for (batch, runs) in block.needed.iter().enumerate() {
            for row in runs.iter().flat_map(Clone::clone) {
                let at = (batch * block.rows.len() + row - block.rows.start) * row_bytes;
                let heads = bytes[at..at + row_bytes].chunks_exact(row_bytes / block.heads.len());
                for (head, elements) in block.heads.clone().zip(heads) {
                    let of = Row { owner: piece.owner, call, tensor, batch, row, head };
                    if elements.chunks_exact(2).any(|element| element != mark(of)) {
                        let Row { owner, row, head, .. } = of;
                        return Err(format!(
                            "call {call}: tensor {tensor} of {owner}, row {row}, head {head} is wrong"
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}
