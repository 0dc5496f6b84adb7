//! Keys as a list of segments, and the tiles that they are cut into.
use super::tables::{TILE, word};
use crate::Error;

/// Key rows as runs that lie apart in memory: the mask's columns are the segments' rows end to end.
///
/// A key tile holds up to 128 rows of one segment, never of two: each segment's last tile may be ragged. Tiles are
/// numbered through all segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySegments {
    rows: Vec<usize>,
    seq_k: usize,
    places: Vec<u32>,
    tile_columns: Vec<[u32; 2]>,
}

/// Bits of a place that name the tile within its segment; the others name the segment.
const TILE_BITS: u32 = 20;

impl KeySegments {
    /// Most segments of a problem.
    pub const MAX: usize = 1 << (32 - TILE_BITS);

    /// Segments of `rows[0]`, `rows[1]`, ... key rows.
    ///
    /// # Errors
    /// [`Error::MaskParameter`] unless there are 1 to [`MAX`](Self::MAX) segments, [`Error::ZeroDim`] for one without
    /// rows, [`Error::TooLong`] when one has more than 2^27 rows or all together more than an i32 can number.
    pub fn new(rows: Vec<usize>) -> Result<Self, Error> {
        let call = "KeySegments::new";
        if rows.is_empty() || rows.len() > Self::MAX {
            let rule = format!("1 to {}", Self::MAX);
            return Err(Error::MaskParameter { call, name: "segments", value: rows.len(), rule });
        }
        let limit = TILE << TILE_BITS;
        let mut seq_k = 0_usize;
        for length in rows.iter().copied() {
            match length {
                0 => return Err(Error::ZeroDim { call, name: "rows of a segment" }),
                _ if length > limit => return Err(Error::TooLong { name: "segment", length, limit }),
                _ => seq_k += length,
            }
        }
        let limit = i32::MAX as usize;
        if seq_k > limit {
            return Err(Error::TooLong { name: "seq_k", length: seq_k, limit });
        }
        let (places, tile_columns) = cut(&rows);
        Ok(Self { rows, seq_k, places, tile_columns })
    }

    /// All keys in one run.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn whole(seq_k: usize) -> Result<Self, Error> {
        Self::new(vec![seq_k])
    }

    /// Rows of each segment.
    pub fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// Rows of all segments, s_k.
    pub const fn seq_k(&self) -> usize {
        self.seq_k
    }

    /// Tiles of all segments.
    pub const fn key_tiles(&self) -> usize {
        self.places.len()
    }

    /// For each key tile: segment << 20 | tile within the segment.
    pub fn places(&self) -> &[u32] {
        &self.places
    }

    /// For each key tile: its first mask column, and how many columns it has, 1 to 128.
    pub fn tile_columns(&self) -> &[[u32; 2]] {
        &self.tile_columns
    }
}

fn cut(rows: &[usize]) -> (Vec<u32>, Vec<[u32; 2]>) {
    let tiles = rows.iter().map(|rows| rows.div_ceil(TILE)).sum();
    let (mut places, mut tile_columns) = (Vec::with_capacity(tiles), Vec::with_capacity(tiles));
    let mut column = 0;
    for (segment, rows) in rows.iter().copied().enumerate() {
        for (tile, start) in (0..rows).step_by(TILE).enumerate() {
            places.push(word(segment) << TILE_BITS | word(tile));
            tile_columns.push([word(column + start), word(TILE.min(rows - start))]);
        }
        column += rows;
    }
    (places, tile_columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_start_anew_in_every_segment() {
        let segments = KeySegments::new(vec![129, 1, 256]).unwrap();
        assert_eq!((segments.seq_k(), segments.key_tiles()), (386, 5));
        assert_eq!(segments.places(), [0, 1, 1 << 20, 2 << 20, 2 << 20 | 1]);
        assert_eq!(segments.tile_columns(), [[0, 128], [128, 1], [129, 1], [130, 128], [258, 128]]);
    }

    #[test]
    fn no_segments_empty_ones_and_too_many_rows_are_refused() {
        let refused = |rows| KeySegments::new(rows).unwrap_err().to_string();
        assert!(refused(vec![]).contains("1 to 4096"));
        assert!(refused(vec![1; 4097]).contains("4097"));
        assert!(refused(vec![3, 0]).contains("is 0"));
        assert!(refused(vec![(1 << 27) + 1]).contains("134217729"));
        assert!(refused(vec![1 << 27; 17]).contains("2281701376"));
    }
}
