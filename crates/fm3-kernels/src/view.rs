//! Borrowed strided tensors [batch, sequence, heads, head dim]; the innermost stride is always 1.
use std::ops::Range;

use crate::Error;

/// Extents of a four-dimensional tensor, in the order batch, sequence, heads, head dim whatever the strides are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extents {
    /// b.
    pub batch: usize,
    /// s.
    pub seq: usize,
    /// h.
    pub heads: usize,
    /// d.
    pub head_dim: usize,
}

/// Steps in elements between neighbours along batch, sequence and heads; along the head dim the step is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// From one sequence of the batch to the next.
    pub batch: usize,
    /// From one row to the next.
    pub seq: usize,
    /// From one head to the next.
    pub heads: usize,
}

impl Strides {
    /// Dense [b, s, h, d].
    pub const fn bshd(e: Extents) -> Self {
        let seq = e.heads.saturating_mul(e.head_dim);
        Self { batch: e.seq.saturating_mul(seq), seq, heads: e.head_dim }
    }

    /// Dense [b, h, s, d].
    pub const fn bhsd(e: Extents) -> Self {
        let heads = e.seq.saturating_mul(e.head_dim);
        Self { batch: e.heads.saturating_mul(heads), seq: e.head_dim, heads }
    }

    fn checked_last(self, e: Extents) -> Option<usize> {
        let batch = self.batch.checked_mul(e.batch - 1)?;
        let seq = self.seq.checked_mul(e.seq - 1)?;
        let heads = self.heads.checked_mul(e.heads - 1)?;
        batch.checked_add(seq)?.checked_add(heads)?.checked_add(e.head_dim)
    }
}

/// A shared strided tensor.
#[derive(Clone, Copy, Debug)]
pub struct View4<'a, T> {
    data: &'a [T],
    extents: Extents,
    strides: Strides,
}

/// An exclusive strided tensor.
#[derive(Debug)]
pub struct View4Mut<'a, T> {
    data: &'a mut [T],
    extents: Extents,
    strides: Strides,
}

impl<'a, T> View4<'a, T> {
    /// Views `data` as dense [b, s, h, d].
    ///
    /// # Errors
    /// [`Error::ViewBounds`] when `data` is too short.
    pub fn bshd(data: &'a [T], extents: Extents) -> Result<Self, Error> {
        Self::strided(data, extents, Strides::bshd(extents))
    }

    /// Views `data` as dense [b, h, s, d].
    ///
    /// # Errors
    /// [`Error::ViewBounds`] when `data` is too short.
    pub fn bhsd(data: &'a [T], extents: Extents) -> Result<Self, Error> {
        Self::strided(data, extents, Strides::bhsd(extents))
    }

    /// Views `data` with any strides (packed QKV, slices of larger tensors; overlap between rows is allowed).
    ///
    /// # Errors
    /// [`Error::ViewBounds`] when the last element lies outside `data`; [`Error::ZeroDim`] for an empty extent.
    pub fn strided(data: &'a [T], extents: Extents, strides: Strides) -> Result<Self, Error> {
        check_bounds(data.len(), extents, strides)?;
        Ok(Self { data, extents, strides })
    }

    /// The extents.
    pub const fn extents(&self) -> Extents {
        self.extents
    }

    /// The strides.
    pub const fn strides(&self) -> Strides {
        self.strides
    }

    /// All of the elements that the view may reach, and perhaps others between them.
    pub const fn data(&self) -> &'a [T] {
        self.data
    }

    /// Some rows of some heads, all batches.
    ///
    /// # Errors
    /// [`Error::ViewPart`] when the part is empty or reaches outside; see [`View4::strided`].
    pub fn part(&self, part: Part) -> Result<Self, Error> {
        let (start, extents) = part.of(self.extents, self.strides)?;
        Self::strided(&self.data[start..], extents, self.strides)
    }

    /// The head dim of one (batch, row, head): `head_dim` elements.
    ///
    /// # Panics
    /// When `at` is outside the extents.
    #[inline]
    pub fn row(&self, at: At) -> &'a [T] {
        let start = offset(at, self.extents, self.strides);
        &self.data[start..start + self.extents.head_dim]
    }
}

impl<'a, T> View4Mut<'a, T> {
    /// Views `data` as dense [b, s, h, d].
    ///
    /// # Errors
    /// [`Error::ViewBounds`] when `data` is too short.
    pub fn bshd(data: &'a mut [T], extents: Extents) -> Result<Self, Error> {
        Self::strided(data, extents, Strides::bshd(extents))
    }

    /// Views `data` as dense [b, h, s, d].
    ///
    /// # Errors
    /// [`Error::ViewBounds`] when `data` is too short.
    pub fn bhsd(data: &'a mut [T], extents: Extents) -> Result<Self, Error> {
        Self::strided(data, extents, Strides::bhsd(extents))
    }

    /// Views `data` with any strides.
    ///
    /// # Errors
    /// [`Error::ViewBounds`] when the last element lies outside `data`; [`Error::ZeroDim`] for an empty extent.
    pub fn strided(data: &'a mut [T], extents: Extents, strides: Strides) -> Result<Self, Error> {
        check_bounds(data.len(), extents, strides)?;
        Ok(Self { data, extents, strides })
    }

    /// The extents.
    pub const fn extents(&self) -> Extents {
        self.extents
    }

    /// The strides.
    pub const fn strides(&self) -> Strides {
        self.strides
    }

    /// The head dim of one (batch, row, head), to write.
    ///
    /// # Panics
    /// When `at` is outside the extents.
    #[inline]
    pub fn row_mut(&mut self, at: At) -> &mut [T] {
        let start = offset(at, self.extents, self.strides);
        &mut self.data[start..start + self.extents.head_dim]
    }

    /// Some rows of some heads, all batches.
    ///
    /// # Errors
    /// [`Error::ViewPart`] when the part is empty or reaches outside; see [`View4Mut::strided`].
    pub fn into_part(self, part: Part) -> Result<Self, Error> {
        let (start, extents) = part.of(self.extents, self.strides)?;
        Self::strided(&mut self.data[start..], extents, self.strides)
    }

    /// A shared view of the same elements.
    pub fn as_view(&self) -> View4<'_, T> {
        View4 { data: self.data, extents: self.extents, strides: self.strides }
    }
}

/// Rows and heads to cut out of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Rows of the sequence.
    pub rows: Range<usize>,
    /// Heads.
    pub heads: Range<usize>,
}

impl Part {
    fn of(&self, e: Extents, s: Strides) -> Result<(usize, Extents), Error> {
        let inside = self.rows.end <= e.seq && self.heads.end <= e.heads;
        if self.rows.is_empty() || self.heads.is_empty() || !inside {
            return Err(Error::ViewPart { part: self.clone(), extents: e });
        }
        let extents = Extents { seq: self.rows.len(), heads: self.heads.len(), ..e };
        Ok((self.rows.start * s.seq + self.heads.start * s.heads, extents))
    }
}

/// Names one row of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Sequence of the batch.
    pub batch: usize,
    /// Row of the sequence.
    pub seq: usize,
    /// Head.
    pub head: usize,
}

#[inline]
fn offset(at: At, e: Extents, s: Strides) -> usize {
    assert!(at.batch < e.batch && at.seq < e.seq && at.head < e.heads, "{at:?} is outside {e:?}");
    at.batch * s.batch + at.seq * s.seq + at.head * s.heads
}

pub(crate) fn check_bounds(len: usize, e: Extents, s: Strides) -> Result<(), Error> {
    let named = [("batch", e.batch), ("seq", e.seq), ("heads", e.heads), ("head_dim", e.head_dim)];
    if let Some((name, _)) = named.into_iter().find(|(_, size)| *size == 0) {
        return Err(Error::ZeroDim { call: "View4", name });
    }
    match s.checked_last(e) {
        Some(needed) if needed <= len => Ok(()),
        needed => Err(Error::ViewBounds { needed: needed.unwrap_or(usize::MAX), len }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const E: Extents = Extents { batch: 2, seq: 3, heads: 2, head_dim: 4 };

    #[test]
    fn both_layouts_name_the_same_rows() {
        let data: Vec<usize> = (0..48).collect();
        let at = At { batch: 1, seq: 2, head: 1 };
        assert_eq!(View4::bshd(&data, E).unwrap().row(at), [44, 45, 46, 47]);
        assert_eq!(View4::bhsd(&data, E).unwrap().row(at), [44, 45, 46, 47]);
        let at = At { batch: 0, seq: 1, head: 0 };
        assert_eq!(View4::bshd(&data, E).unwrap().row(at), [8, 9, 10, 11]);
        assert_eq!(View4::bhsd(&data, E).unwrap().row(at), [4, 5, 6, 7]);
    }

    #[test]
    fn a_part_names_the_same_rows_from_its_own_origin() {
        let mut data: Vec<usize> = (0..48).collect();
        let cut = Part { rows: 1..3, heads: 1..2 };
        let at = At { batch: 1, seq: 1, head: 0 };
        let part = View4::bshd(&data, E).unwrap().part(cut.clone()).unwrap();
        assert_eq!(part.row(at), [44, 45, 46, 47]);
        let whole = View4Mut::bhsd(&mut data, E).unwrap();
        whole.into_part(cut).unwrap().row_mut(at)[0] = 99;
        assert_eq!(data[44], 99);
        let outside = Part { rows: 1..4, heads: 0..2 };
        assert!(View4::bshd(&data, E).unwrap().part(outside).is_err());
    }

    #[test]
    fn a_short_slice_and_an_overflow_are_refused_with_both_numbers() {
        let err = View4::bshd(&[0u8; 47], E).unwrap_err();
        assert!(matches!(err, Error::ViewBounds { needed: 48, len: 47 }), "{err}");
        let huge = Strides { batch: usize::MAX, seq: 1, heads: 1 };
        assert!(View4::strided(&[0u8; 47], E, huge).is_err());
    }
}
