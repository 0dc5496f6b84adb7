//! Host tensors from the whole sequence to the ranks and back.
use fm3_kernels::view::Extents;

use crate::{Error, Sharding};

/// Where the sequence axis of a dense tensor lies: [outer, sequence, inner].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqAxis {
    /// Product of the extents before the sequence.
    pub outer: usize,
    /// Product of the extents after it.
    pub inner: usize,
}

impl SeqAxis {
    /// Dense [b, s, h, d]; the sequence extent is not used.
    pub const fn bshd(extents: Extents) -> Self {
        Self { outer: extents.batch, inner: extents.heads * extents.head_dim }
    }

    /// Dense [b, h, s, d]; the sequence extent is not used.
    pub const fn bhsd(extents: Extents) -> Self {
        Self { outer: extents.batch * extents.heads, inner: extents.head_dim }
    }

    /// LSE, dense [b, h, s]; sequence and head dim are not used.
    pub const fn lse(extents: Extents) -> Self {
        Self { outer: extents.batch * extents.heads, inner: 1 }
    }

    fn elems(self, rows: usize) -> usize {
        self.outer.saturating_mul(rows).saturating_mul(self.inner)
    }
}

/// Cuts a tensor of the whole sequence: one local tensor per rank.
///
/// # Errors
/// [`Error::TensorLength`] when `global` does not hold the elements that the axis and the sharding ask for.
pub fn scatter<T: Copy>(sharding: &Sharding, axis: SeqAxis, global: &[T]) -> Result<Vec<Vec<T>>, Error> {
    let seq = sharding.seq_len();
    check_len("scatter", axis.elems(seq), global.len())?;
    let local = |rank| {
        let mut local = Vec::with_capacity(axis.elems(sharding.len(rank)));
        for outer in 0..axis.outer {
            for rows in sharding.rows(rank) {
                let at = |row: usize| (outer * seq + row) * axis.inner;
                local.extend_from_slice(&global[at(rows.start)..at(rows.end)]);
            }
        }
        local
    };
    Ok(sharding.world().ranks().map(local).collect())
}

/// The tensor of the whole sequence from the ranks' local ones: the inverse of [`scatter`].
///
/// # Errors
/// [`Error::TensorCount`] unless there is one local tensor per rank; [`Error::TensorLength`] as in [`scatter`].
pub fn gather<T: Copy, L: AsRef<[T]>>(
    sharding: &Sharding,
    axis: SeqAxis,
    locals: &[L],
) -> Result<Vec<T>, Error> {
    let world = sharding.world();
    if locals.len() != world.size() {
        return Err(Error::TensorCount { call: "gather", expected: world.size(), got: locals.len() });
    }
    for (rank, local) in world.ranks().zip(locals) {
        check_len("gather", axis.elems(sharding.len(rank)), local.as_ref().len())?;
    }
    let mut global = Vec::with_capacity(axis.elems(sharding.seq_len()));
    for outer in 0..axis.outer {
        for run in sharding.runs() {
            let first = (outer * sharding.len(run.owner) + run.first_local) * axis.inner;
            let local = locals[run.owner.index()].as_ref();
            global.extend_from_slice(&local[first..first + run.rows.len() * axis.inner]);
        }
    }
    Ok(global)
}

fn check_len(call: &'static str, expected: usize, got: usize) -> Result<(), Error> {
    match expected == got {
        true => Ok(()),
        false => Err(Error::TensorLength { call, expected, got }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use symm_buffer::World;

    use super::*;
    use crate::sharding::ShardingKind;

    const E: Extents = Extents { batch: 2, seq: 7, heads: 3, head_dim: 2 };

    #[test]
    fn a_local_row_is_the_global_row_of_its_position() {
        let sharding = Sharding::dual_chunk(7, World::new(2).unwrap()).unwrap();
        let tags = |axis: SeqAxis| -> Vec<(usize, usize, usize)> {
            let all = (0..axis.outer).flat_map(|o| (0..7).map(move |row| (o, row)));
            all.flat_map(|(o, row)| (0..axis.inner).map(move |i| (o, row, i))).collect()
        };
        for axis in [SeqAxis::bshd(E), SeqAxis::bhsd(E), SeqAxis::lse(E)] {
            let locals = scatter(&sharding, axis, &tags(axis)).unwrap();
            for (rank, local) in sharding.world().ranks().zip(&locals) {
                let positions = sharding.positions(rank);
                for (index, (outer, row, inner)) in local.iter().enumerate() {
                    assert_eq!(*inner, index % axis.inner);
                    assert_eq!(*row, positions[index / axis.inner % positions.len()]);
                    assert_eq!(*outer, index / axis.inner / positions.len());
                }
            }
        }
        assert_eq!((SeqAxis::bhsd(E).outer, SeqAxis::lse(E).inner), (6, 1));
    }

    #[test]
    fn wrong_sizes_are_refused_with_both_numbers() {
        let sharding = Sharding::contiguous(7, World::new(2).unwrap()).unwrap();
        let axis = SeqAxis::lse(E);
        let refused = scatter(&sharding, axis, &[0u8; 41]);
        assert!(matches!(refused, Err(Error::TensorLength { expected: 42, got: 41, .. })));
        let refused = gather(&sharding, axis, &[[0u8; 18]]);
        assert!(matches!(refused, Err(Error::TensorCount { expected: 2, got: 1, .. })));
        let refused = gather(&sharding, axis, &[[0u8; 18], [0; 18]]);
        assert!(matches!(refused, Err(Error::TensorLength { expected: 24, got: 18, .. })));
    }

    proptest! {
        #[test]
        fn gather_undoes_scatter(
            seq in 1usize..60, ranks in 1u32..9, dual: bool, outer in 1usize..4, inner in 1usize..5,
        ) {
            let kind = if dual { ShardingKind::DualChunk } else { ShardingKind::Contiguous };
            let Ok(sharding) = Sharding::new(kind, seq, World::new(ranks).unwrap()) else { return Ok(()) };
            let axis = SeqAxis { outer, inner };
            let global: Vec<usize> = (0..outer * seq * inner).collect();
            let locals = scatter(&sharding, axis, &global).unwrap();
            prop_assert_eq!(gather(&sharding, axis, &locals).unwrap(), global);
        }
    }
}
