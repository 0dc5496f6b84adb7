//! A mask as a small picture: the first head of the first sequence, one character per cell.
use std::fmt;

use super::{BlockClass, FlashMask, MaskDims, MaskHead, Rows, classify};

/// Cells down and across, at most.
const CELLS: (usize, usize) = (16, 32);

/// A line of sizes, then at most 16 x 32 cells: `#` all pairs visible, `+` some, `.` none.
impl fmt::Display for FlashMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MaskDims { batch, heads, seq_q, seq_k } = self.dims();
        let (rows, cols) = (seq_q.div_ceil(CELLS.0), seq_k.div_ceil(CELLS.1));
        let causal = if self.is_causal() { "causal" } else { "not causal" };
        writeln!(
            f,
            "mask [b = {batch}, h = {heads}, s_q = {seq_q}, s_k = {seq_k}], C = {}, {causal}, density {:.5}; \
             cells of {rows} x {cols}: # full, + partial, . skip",
            self.columns().count(),
            self.density()
        )?;
        let first = MaskHead { batch: 0, head: 0 };
        for start in (0..seq_q).step_by(rows) {
            let rows = Rows { start, end: (start + rows).min(seq_q) };
            let cell =
                |start: usize| match classify(self.bands_in(first, start..(start + cols).min(seq_k)), rows) {
                    BlockClass::Skip => '.',
                    BlockClass::Partial => '+',
                    BlockClass::Full => '#',
                };
            writeln!(f, "{}", (0..seq_k).step_by(cols).map(cell).collect::<String>())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_causal_mask_shows_its_triangle() {
        let dims = MaskDims { batch: 1, heads: 2, seq_q: 32, seq_k: 64 };
        let picture = FlashMask::causal(dims).unwrap().to_string();
        let lines: Vec<&str> = picture.lines().collect();
        assert!(lines[0].contains("s_q = 32") && lines[0].contains("C = 1, causal"), "{picture}");
        assert_eq!(lines.len(), 17, "{picture}");
        // Row 0 stands at position 32: the first 16 cells of 2 columns are full, then the diagonal.
        assert_eq!(lines[1], format!("{}+{}", "#".repeat(16), ".".repeat(15)), "{picture}");
        assert_eq!(lines[16], format!("{}+", "#".repeat(31)), "{picture}");
    }
}
