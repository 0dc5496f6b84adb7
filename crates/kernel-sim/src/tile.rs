//! Tiles in f32, and their products.
#[cfg(test)]
use std::iter::repeat_n;

/// Elements of a row of Q, K, V, O.
pub(crate) const HEAD_DIM: usize = 128;

/// Rows of a tile of Q or O, and of a tile of K or V.
pub(crate) const TILE: usize = 128;

/// Elements of a tile: rows by head dim, or rows by keys.
pub(crate) const ELEMENTS: usize = TILE * HEAD_DIM;

/// Zeroes.
pub(crate) fn tile() -> Vec<f32> {
    vec![0.0; ELEMENTS]
}

/// Rows of 128, or their transpose.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    transposed: bool,
}

impl<'a> Matrix<'a> {
    pub(crate) fn rows(data: &'a [f32]) -> Self {
        assert!(data.len().is_multiple_of(TILE), "whole rows");
        Self { data, transposed: false }
    }

    pub(crate) fn columns(data: &'a [f32]) -> Self {
        Self { transposed: true, ..Self::rows(data) }
    }

    /// Rows and columns.
    fn size(self) -> [usize; 2] {
        let rows = self.data.len() / TILE;
        if self.transposed { [TILE, rows] } else { [rows, TILE] }
    }

    /// From one row to the next, and from one column to the next.
    fn steps(self) -> [isize; 2] {
        let row = TILE.cast_signed();
        if self.transposed { [1, row] } else { [row, 1] }
    }
}

/// `to += a b`, f32 sums in an order that depends on the sizes and the processor alone. `to` has rows of 128.
pub(crate) fn add_product(to: &mut [f32], a: Matrix<'_>, b: Matrix<'_>) {
    let [[rows, inner], [inner_b, columns]] = [a.size(), b.size()];
    assert!(inner == inner_b && columns == TILE && to.len() == rows * columns, "sizes do not fit");
    let [[a_row, a_column], [b_row, b_column]] = [a.steps(), b.steps()];
    // SAFETY: element (i, j) of a matrix of `size` lies at the sum of its steps, inside its slice, since the slice holds
    // whole rows of 128; `to` holds rows x columns, checked above, and being exclusive overlaps neither.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            to.as_mut_ptr(),
            1,
            TILE.cast_signed(),
            true,
            a.data.as_ptr(),
            a_column,
            a_row,
            b.data.as_ptr(),
            b_column,
            b_row,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_all_forms_add_up() {
        // a [2, 128] has 1 in column 0 and 3; b [128, 128] has its row number everywhere, and 1 more on the diagonal.
        let mut a = vec![0.0; 2 * TILE];
        (a[0], a[TILE + 3]) = (1.0, 2.0);
        let mut b: Vec<f32> = (0..128_u8).flat_map(|row| repeat_n(f32::from(row), TILE)).collect();
        (0..TILE).for_each(|at| b[at * (TILE + 1)] += 1.0);
        let mut to = vec![10.0; 2 * TILE];
        add_product(&mut to, Matrix::rows(&a), Matrix::rows(&b));
        assert_eq!((to[0], to[1], to[TILE], to[TILE + 3]), (11.0, 10.0, 16.0, 18.0));
        let mut to = vec![0.0; 2 * TILE];
        add_product(&mut to, Matrix::rows(&a), Matrix::columns(&b));
        assert_eq!((to[0], to[5], to[TILE], to[TILE + 3]), (1.0, 5.0, 0.0, 8.0));
        // [128, 2] [2, 128]: row i is a[0][i] times row 0 of `two` and a[1][i] times row 1.
        let two: Vec<f32> = repeat_n(5.0, TILE).chain(repeat_n(7.0, TILE)).collect();
        let mut to = tile();
        add_product(&mut to, Matrix::columns(&a), Matrix::rows(&two));
        assert_eq!((to[0], to[TILE], to[3 * TILE + 9]), (5.0, 0.0, 14.0));
    }
}
