//! Dense masks written straight from the definition table, sharing no code with the crate.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use fm3_kernels::FlashMask;
use fm3_kernels::mask::{BlockClass, MaskDims};

/// Visible pairs [b, h, s_q, s_k], row-major.
pub struct Dense {
    pub dims: MaskDims,
    pub visible: Vec<bool>,
}

/// One pair.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub batch: usize,
    pub head: usize,
    pub row: usize,
    pub col: usize,
}

impl Dense {
    /// Asks `visible` for every pair.
    pub fn of(dims: MaskDims, visible: impl Fn(Pair) -> bool) -> Self {
        let mut all = Vec::with_capacity(dims.batch * dims.heads * dims.seq_q * dims.seq_k);
        for batch in 0..dims.batch {
            for head in 0..dims.heads {
                for row in 0..dims.seq_q {
                    all.extend((0..dims.seq_k).map(|col| visible(Pair { batch, head, row, col })));
                }
            }
        }
        Self { dims, visible: all }
    }

    /// The meaning of a mask's raw bounds.
    pub fn of_mask(mask: &FlashMask) -> Self {
        let (dims, c) = (mask.dims(), mask.columns().count());
        Self::of(dims, |Pair { batch, head, row, col }| {
            let at = (((batch * dims.heads) + head) * dims.seq_k + col) * c;
            let bound = |n: usize| i64::from(mask.bounds()[at + n]);
            let (i, j) = (row as i64, col as i64);
            let shift = dims.seq_k as i64 - dims.seq_q as i64;
            match (c, mask.is_causal()) {
                (1, true) => j <= i + shift && i < bound(0),
                (2, true) => j <= i + shift && !(bound(0)..bound(1)).contains(&i),
                (2, false) => i < bound(0) && i >= bound(1),
                (4, false) => !(bound(0)..bound(1)).contains(&i) && !(bound(2)..bound(3)).contains(&i),
                form => panic!("{form:?} is not a form"),
            }
        })
    }

    pub fn sees(&self, at: Pair) -> bool {
        let d = self.dims;
        self.visible[((at.batch * d.heads + at.head) * d.seq_q + at.row) * d.seq_k + at.col]
    }

    pub fn pairs(&self) -> u64 {
        self.visible.iter().filter(|seen| **seen).count() as u64
    }

    /// The class of a rectangle of one head, by counting.
    pub fn class(&self, first: Pair, last: Pair) -> BlockClass {
        let (mut seen, mut all) = (0, 0);
        for row in first.row..last.row {
            for col in first.col..last.col {
                seen += usize::from(self.sees(Pair { row, col, ..first }));
                all += 1;
            }
        }
        match seen {
            0 => BlockClass::Skip,
            n if n == all => BlockClass::Full,
            _ => BlockClass::Partial,
        }
    }
}
