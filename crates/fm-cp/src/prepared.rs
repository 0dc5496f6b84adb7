//! What is made once per mask, shape and sharding, and holds for any number of calls (rule P1).
use cp_overlap::{CpPlan, Problem, RankPlan, Sharding, fold_mask};
use fm3_kernels::cpu::TILE;
use fm3_kernels::mask::BlockLists;
use fm3_kernels::{DType, Dims, FlashMask, Shape};
use symm_buffer::{Bytes, Pe};

#[cfg(feature = "nvshmem")]
use crate::device::DevicePrepared;
use crate::{Config, Error, PassKind};

/// Sizes of a problem over all ranks; the sequence length is that of the mask and the sharding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpShape {
    /// Sequences, b.
    pub batch: usize,
    /// Query heads.
    pub heads_q: usize,
    /// KV heads; divides `heads_q`.
    pub heads_kv: usize,
    /// Elements per head: a multiple of 8, at most 256.
    pub head_dim: usize,
    /// Element type of all tensors.
    pub dtype: DType,
}

/// A plan with this rank's folded mask and its block lists. Depends on values only, never on addresses.
#[derive(Debug)]
pub struct Prepared {
    plan: RankPlan,
    mask: FlashMask,
    /// One per segment, key tiles counted from the segment's first column; none for a group on GPUs.
    blocks: Option<Vec<BlockLists>>,
    world: usize,
    #[cfg(feature = "nvshmem")]
    device: Option<DevicePrepared>,
}

impl Prepared {
    pub(crate) fn new(
        mask: &FlashMask,
        shape: CpShape,
        sharding: &Sharding,
        (rank, config): (Pe, &Config),
    ) -> Result<Self, Error> {
        let seq = sharding.seq_len();
        let CpShape { batch, heads_q, heads_kv, head_dim, dtype } = shape;
        let global = Shape::new(Dims { batch, heads_q, heads_kv, seq_q: seq, seq_k: seq, head_dim })?;
        let problem = Problem::new(global, mask.clone(), sharding.clone(), dtype, config.tunables)?;
        let plan = RankPlan::build(&problem, rank)?;
        // A plan can be proved only together with those of the other ranks. Every rank has the same problem, so one proves
        // it for all.
        if cfg!(debug_assertions) && rank == Pe(0) {
            CpPlan::build(&problem)?;
        }
        let mask = fold_mask(mask, sharding, rank)?;
        let world = sharding.world().size();
        Ok(Self {
            plan,
            mask,
            blocks: None,
            world,
            #[cfg(feature = "nvshmem")]
            device: None,
        })
    }

    /// With what the CPU engine needs.
    pub(crate) fn with_blocks(mut self) -> Result<Self, Error> {
        let columns = |s: &cp_overlap::plan::Segment| s.first_column..s.first_column + s.rows;
        let segments = self.plan.segments.iter();
        let lists = segments.map(|segment| BlockLists::build(&self.mask, columns(segment), TILE));
        self.blocks = Some(lists.collect::<Result<_, _>>()?);
        Ok(self)
    }

    /// With what a group on GPUs needs.
    #[cfg(feature = "nvshmem")]
    pub(crate) fn with_device(mut self, device: DevicePrepared) -> Self {
        self.device = Some(device);
        self
    }

    #[cfg(feature = "nvshmem")]
    pub(crate) fn device(&self, call: &'static str) -> Result<&DevicePrepared, Error> {
        self.device.as_ref().ok_or(Error::ForeignPreparation { call })
    }

    /// Bytes of symmetric memory that calls of this pass need on each rank; a backward also has those of the forward.
    pub const fn symmetric_bytes(&self, pass: PassKind) -> Bytes {
        match pass {
            PassKind::Forward => self.plan.memory.forward(),
            PassKind::Backward => self.plan.memory.both(),
        }
    }

    /// The plan of this rank: prints as a timeline, serialises.
    pub const fn plan(&self) -> &RankPlan {
        &self.plan
    }

    /// This rank's mask: local rows, all keys in gather order, C = 4.
    pub const fn mask(&self) -> &FlashMask {
        &self.mask
    }

    /// The rank that it was made for.
    pub const fn rank(&self) -> Pe {
        self.plan.rank
    }

    pub(crate) const fn world(&self) -> usize {
        self.world
    }

    pub(crate) const fn is_for_host(&self) -> bool {
        self.blocks.is_some()
    }

    /// Only of preparations for the host, which calls check.
    pub(crate) fn blocks(&self, segment: usize) -> &BlockLists {
        &self.blocks.as_deref().unwrap_or_default()[segment]
    }
}
