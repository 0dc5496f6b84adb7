//! Who may touch which bytes of a block now: any number of readers or one writer of every byte.
//!
//! It makes in-place access sound, and finds slots that are written before their reader is done. Claims never wait:
//! under the protocol's rules a clash cannot happen, so it is an error.
use crate::{Copy2d, Corner};

/// The bytes of a 2-D view in one block: `rows` rows of `width` bytes, `pitch` apart, `pitch >= width`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) offset: usize,
    pub(super) pitch: usize,
    pub(super) width: usize,
    pub(super) rows: usize,
}

impl Rows {
    /// A run of bytes.
    pub(super) fn run(offset: usize, len: usize) -> Self {
        Self { offset, pitch: len.max(1), width: len, rows: 1 }
    }

    /// One side of a copy that was checked already.
    pub(super) fn of(corner: Corner, copy: &Copy2d) -> Self {
        if corner.pitch == copy.width || copy.rows == 1 {
            return Self::run(corner.offset, copy.bytes());
        }
        Self { offset: corner.offset, pitch: corner.pitch, width: copy.width, rows: copy.rows }
    }

    /// Whether any byte is in both. Exact.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        if self.is_empty() || other.is_empty() || self.end() <= other.offset || other.end() <= self.offset {
            return false;
        }
        if self.rows == 1 || other.rows == 1 || self.pitch == other.pitch {
            let pitch = if self.rows == 1 { other.pitch } else { self.pitch };
            return self.overlaps_at(other, pitch);
        }
        let (few, many) = if self.rows < other.rows { (self, other) } else { (other, self) };
        (0..few.rows).any(|row| Self::run(few.offset + row * few.pitch, few.width).overlaps(many))
    }

    /// As `overlaps` when rows of both (if there are several) lie `pitch` apart.
    ///
    /// Row s of the other begins `d + (s - r) * pitch` after our row r. They share a byte when that lies above
    /// `-other.width` and below `self.width`, so there must be a k = s - r between two quotients.
    fn overlaps_at(&self, other: &Self, pitch: usize) -> bool {
        let int = usize::cast_signed;
        let d = int(other.offset) - int(self.offset);
        let pitch = int(pitch);
        let least = -(int(other.width) + d - 1).div_euclid(pitch);
        let most = (int(self.width) - d - 1).div_euclid(pitch);
        least.max(1 - int(self.rows)) <= most.min(int(other.rows) - 1)
    }

    fn is_empty(&self) -> bool {
        self.width == 0 || self.rows == 0
    }

    fn end(&self) -> usize {
        self.offset + (self.rows - 1) * self.pitch + self.width
    }
}

/// What a claim is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// The claims on one block.
#[derive(Debug, Default)]
pub(super) struct Claims {
    next: u64,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    id: u64,
    rows: Rows,
    access: Access,
    holder: &'static str,
}

impl Claims {
    /// Claims the bytes, or says who holds some of them.
    pub(super) fn claim(
        &mut self,
        rows: Rows,
        access: Access,
        holder: &'static str,
    ) -> Result<u64, &'static str> {
        let clash = |held: &&Held| {
            (access == Access::Write || held.access == Access::Write) && held.rows.overlaps(&rows)
        };
        if let Some(held) = self.held.iter().find(clash) {
            return Err(held.holder);
        }
        let id = self.next;
        self.next += 1;
        self.held.push(Held { id, rows, access, holder });
        Ok(id)
    }

    pub(super) fn release(&mut self, id: u64) {
        if let Some(at) = self.held.iter().position(|held| held.id == id) {
            self.held.swap_remove(at);
        }
    }

    /// Who holds anything.
    pub(super) fn holder(&self) -> Option<&'static str> {
        self.held.first().map(|held| held.holder)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn bytes(rows: &Rows) -> HashSet<usize> {
        (0..rows.rows)
            .flat_map(|r| (0..rows.width).map(move |c| (r, c)))
            .map(|(r, c)| rows.offset + r * rows.pitch + c)
            .collect()
    }

    fn any_rows(pitch: impl Strategy<Value = usize>) -> impl Strategy<Value = Rows> {
        (0_usize..60, pitch, 0_usize..12, 0_usize..7).prop_map(|(offset, pitch, width, rows)| Rows {
            offset,
            pitch: pitch.max(width).max(1),
            width,
            rows,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn overlap_is_a_common_byte(a in any_rows(0_usize..20), b in any_rows(0_usize..20)) {
            let common = !bytes(&a).is_disjoint(&bytes(&b));
            prop_assert_eq!(a.overlaps(&b), common, "{:?} {:?}", a, b);
            prop_assert_eq!(b.overlaps(&a), common);
        }

        #[test]
        fn overlap_is_a_common_byte_at_one_pitch(a in any_rows(Just(15)), b in any_rows(Just(15))) {
            prop_assert_eq!(a.overlaps(&b), !bytes(&a).is_disjoint(&bytes(&b)), "{:?} {:?}", a, b);
        }
    }

    #[test]
    fn columns_of_the_same_rows_are_apart() {
        let left = Rows { offset: 0, pitch: 100, width: 50, rows: 1000 };
        let right = Rows { offset: 50, ..left };
        let mut claims = Claims::default();
        let id = claims.claim(left, Access::Write, "left").unwrap();
        assert!(claims.claim(right, Access::Write, "right").is_ok());
        assert_eq!(claims.claim(Rows { offset: 49, ..left }, Access::Read, "both"), Err("left"));
        claims.release(id);
        assert_eq!(claims.claim(left, Access::Read, "a"), Ok(2));
        assert_eq!(claims.claim(left, Access::Read, "b"), Ok(3), "readers share");
        assert_eq!(claims.claim(left, Access::Write, "c"), Err("a"));
        assert_eq!(claims.holder(), Some("right"));
    }
}
