//! Checked problem sizes: once a [`Shape`] exists, later code need not ask again.
use serde::{Deserialize, Serialize};

use crate::Error;

/// Sizes of one attention problem as the user states them; [`Shape::new`] checks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Dims {
    /// Number of sequences, b.
    pub batch: usize,
    /// Query heads, hq.
    pub heads_q: usize,
    /// KV heads, hkv; divides `heads_q` (GQA: each serves `heads_q / heads_kv` query heads).
    pub heads_kv: usize,
    /// Query rows, sq.
    pub seq_q: usize,
    /// Key rows, sk.
    pub seq_k: usize,
    /// Elements per head, d: a multiple of 8, at most 256.
    pub head_dim: usize,
}

/// Largest head dim that the engine takes.
pub const MAX_HEAD_DIM: usize = 256;

/// Checked [`Dims`]: all positive, heads divide, head dim allowed, lengths fit the mask's i32 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Dims", into = "Dims")]
pub struct Shape(Dims);

impl Shape {
    /// Checks `dims`.
    ///
    /// # Errors
    /// [`Error::ZeroDim`], [`Error::HeadRatio`], [`Error::HeadDim`] or [`Error::TooLong`], with the values.
    pub fn new(dims: Dims) -> Result<Self, Error> {
        let named = [
            ("batch", dims.batch),
            ("heads_q", dims.heads_q),
            ("heads_kv", dims.heads_kv),
            ("seq_q", dims.seq_q),
            ("seq_k", dims.seq_k),
            ("head_dim", dims.head_dim),
        ];
        if let Some((name, _)) = named.into_iter().find(|(_, size)| *size == 0) {
            return Err(Error::ZeroDim { call: "Shape::new", name });
        }
        if !dims.heads_q.is_multiple_of(dims.heads_kv) {
            return Err(Error::HeadRatio { heads_q: dims.heads_q, heads_kv: dims.heads_kv });
        }
        if !dims.head_dim.is_multiple_of(8) || dims.head_dim > MAX_HEAD_DIM {
            return Err(Error::HeadDim { head_dim: dims.head_dim, max: MAX_HEAD_DIM });
        }
        let limit = i32::MAX as usize;
        for (name, length) in [("seq_q", dims.seq_q), ("seq_k", dims.seq_k)] {
            if length > limit {
                return Err(Error::TooLong { name, length, limit });
            }
        }
        Ok(Self(dims))
    }

    /// The sizes.
    pub const fn dims(&self) -> Dims {
        self.0
    }

    /// Query heads per KV head.
    pub const fn group_size(&self) -> usize {
        self.0.heads_q / self.0.heads_kv
    }

    /// The usual softmax scale, 1 / sqrt(d).
    pub fn default_scale(&self) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "d <= 256: the rounding to f32 is wanted")]
        let scale = (1.0 / (self.0.head_dim as f64).sqrt()) as f32;
        scale
    }
}

impl TryFrom<Dims> for Shape {
    type Error = Error;

    fn try_from(dims: Dims) -> Result<Self, Error> {
        Self::new(dims)
    }
}

impl From<Shape> for Dims {
    fn from(shape: Shape) -> Self {
        shape.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Dims = Dims { batch: 1, heads_q: 8, heads_kv: 2, seq_q: 5, seq_k: 7, head_dim: 64 };

    #[test]
    fn each_rule_names_its_numbers() {
        assert_eq!(Shape::new(GOOD).unwrap().group_size(), 4);
        let refused = |dims: Dims| Shape::new(dims).unwrap_err().to_string();
        assert!(refused(Dims { seq_k: 0, ..GOOD }).contains("seq_k"));
        assert!(
            refused(Dims { heads_kv: 3, ..GOOD }).contains("8")
                && refused(Dims { heads_kv: 3, ..GOOD }).contains("3")
        );
        assert!(refused(Dims { head_dim: 12, ..GOOD }).contains("12"));
        assert!(refused(Dims { head_dim: 264, ..GOOD }).contains("264"));
    }
}
