//! One fold gives the offset of every part of a region, and its size.
use crate::{Bytes, Error, RegionId, Span};

/// Alignment of regions, parts and signal words in bytes: two cache lines of a CPU, one of an H100's L2.
pub const ALIGNMENT: usize = 128;

/// A part of a region, or of a half of a double buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Part {
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

impl Part {
    /// The same bytes in a region in which the parts begin at byte 0.
    pub const fn of(self, region: RegionId) -> Span {
        Span { region, offset: self.offset, len: self.len }
    }
}

/// Builds a layout part by part; each begins on a multiple of [`ALIGNMENT`].
///
/// ```
/// use symm_buffer::{Bytes, Layout, layout::Part};
/// let mut layout = Layout::new();
/// assert_eq!(layout.add(Bytes(1000))?, Part { offset: 0, len: 1000 });
/// assert_eq!(layout.add(Bytes(8))?, Part { offset: 1024, len: 8 });
/// assert_eq!(layout.total(), Bytes(1152));
/// # Ok::<(), symm_buffer::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    end: usize,
}

impl Layout {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { end: 0 }
    }

    /// The next part.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the total does not fit an address.
    pub fn add(&mut self, bytes: Bytes) -> Result<Part, Error> {
        let offset = self.end;
        let end = offset.checked_add(bytes.0).and_then(round_up);
        self.end = end.ok_or(Error::TooLarge { call: "Layout::add", used: Bytes(offset), wanted: bytes })?;
        Ok(Part { offset, len: bytes.0 })
    }

    /// Size so far, a multiple of [`ALIGNMENT`].
    pub const fn total(self) -> Bytes {
        Bytes(self.end)
    }
}

/// The next multiple of [`ALIGNMENT`]; `None` past the last address (allocations end at `isize::MAX`).
pub(crate) fn round_up(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGNMENT).filter(|&end| isize::try_from(end).is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_aligned_apart_and_tight(sizes in prop::collection::vec(0_usize..5000, 0..20)) {
            let mut layout = Layout::new();
            let mut free_from = 0;
            for &size in &sizes {
                let part = layout.add(Bytes(size)).unwrap();
                prop_assert_eq!(part.offset % 128, 0);
                prop_assert!(part.offset >= free_from && part.offset < free_from + 128);
                prop_assert_eq!(part.len, size);
                free_from = part.offset + size;
            }
            let total = layout.total().0;
            prop_assert!(total >= free_from && total < free_from + 128 && total.is_multiple_of(128));
        }
    }

    #[test]
    fn a_total_past_the_last_address_is_refused() {
        let mut layout = Layout::new();
        layout.add(Bytes(128)).unwrap();
        assert!(matches!(layout.add(Bytes(usize::MAX - 100)), Err(Error::TooLarge { used: Bytes(128), .. })));
        assert_eq!(layout.total(), Bytes(128), "a refused part takes no room");
    }
}
