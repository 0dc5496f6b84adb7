//! Matrix products on checked slices: a safe face of the `gemm` crate, one thread a product.
//!
//! A product sums in an order that depends on its sizes and the processor alone, so equal calls give equal bits.
#![expect(unsafe_code, reason = "gemm::gemm takes raw pointers; this module checks the slices first")]

/// A matrix in a dense slice of rows, or the transpose of one.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_step: usize,
    col_step: usize,
}

impl<'a> Matrix<'a> {
    /// Dense rows of `cols` elements each; `data` holds whole rows.
    pub(super) fn rows_of(data: &'a [f32], cols: usize) -> Self {
        assert!(
            cols > 0 && data.len().is_multiple_of(cols),
            "{} elements are not rows of {cols}",
            data.len()
        );
        Self { data, rows: data.len() / cols, cols, row_step: cols, col_step: 1 }
    }

    /// The transpose, without moving anything.
    pub(super) const fn transposed(self) -> Self {
        let Self { data, rows, cols, row_step, col_step } = self;
        Self { data, rows: cols, cols: rows, row_step: col_step, col_step: row_step }
    }
}

/// What happens to the destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Into {
    /// It is overwritten and never read.
    Write,
    /// The product is added to it.
    Add,
}

/// `dst = a b` or `dst += a b`, where `dst` is dense [rows of a, columns of b].
pub(super) fn multiply(dst: &mut [f32], how: Into, a: Matrix<'_>, b: Matrix<'_>) {
    assert_eq!(a.cols, b.rows, "inner sizes differ");
    assert_eq!(dst.len(), a.rows * b.cols, "destination does not fit");
    let step = usize::cast_signed;
    // SAFETY: `Matrix` is made by `rows_of` only (and turned by `transposed`), so element (i, j) of `a` and `b` lies
    // at i * row_step + j * col_step < data.len(); `dst` holds rows x cols elements, checked above. All slices are
    // valid for that long, and `dst`, being exclusive, overlaps neither. Sizes and steps are below isize::MAX as
    // they are bounded by slice lengths. With `read_dst` false the old values are not read (they are
    // initialised in any case).
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            dst.as_mut_ptr(),
            1,
            step(b.cols),
            how == Into::Add,
            a.data.as_ptr(),
            step(a.col_step),
            step(a.row_step),
            b.data.as_ptr(),
            step(b.col_step),
            step(b.row_step),
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
    fn small_products_are_exact_written_and_added() {
        let a: Vec<f32> = (0..6u8).map(f32::from).collect();
        let b: Vec<f32> = (0..8u8).map(f32::from).collect();
        // [3, 2] x [2, 4]
        let expected = [4.0, 5.0, 6.0, 7.0, 12.0, 17.0, 22.0, 27.0, 20.0, 29.0, 38.0, 47.0];
        let mut dst = [f32::NAN; 12];
        multiply(&mut dst, Into::Write, Matrix::rows_of(&a, 2), Matrix::rows_of(&b, 4));
        assert_eq!(dst, expected);
        // [2, 3] as the transpose of [3, 2], times [3, 1].
        let mut sum = [100.0, 200.0];
        multiply(
            &mut sum,
            Into::Add,
            Matrix::rows_of(&a, 2).transposed(),
            Matrix::rows_of(&[1.0, 10.0, 100.0], 1),
        );
        assert_eq!(sum, [100.0 + 420.0, 200.0 + 531.0]);
    }

    #[test]
    #[should_panic(expected = "inner sizes differ")]
    fn sizes_that_do_not_fit_are_caught_before_any_pointer_is_made() {
        let data = [0.0; 6];
        multiply(&mut [0.0; 9], Into::Write, Matrix::rows_of(&data, 3), Matrix::rows_of(&data, 3));
    }
}
