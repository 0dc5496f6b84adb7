//! Problems of the table.
use fm_cp::mask::{Documents, MaskDims, MaskSpec};
use fm_cp::{CpShape, DType, FlashMask};
use serde::Serialize;

use crate::bench::documents;
use crate::input::BadInput;

/// One problem, sharded in two chunks a rank.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    /// Rows and keys of the whole sequence.
    pub seq: usize,
    pub heads_q: usize,
    pub heads_kv: usize,
    pub head_dim: usize,
    /// As `MaskSpec` reads it.
    pub mask: String,
    /// Milliseconds of a forward that two H200s must not exceed, and those to reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal_ms: Option<f64>,
}

impl Row {
    /// Name in the table.
    pub(super) fn name(&self) -> String {
        let Self { seq, heads_q, heads_kv, mask, .. } = self;
        let seq = if seq.is_multiple_of(1024) { format!("{} K", seq / 1024) } else { seq.to_string() };
        format!("{seq} {heads_q}/{heads_kv} {mask}")
    }

    /// Sizes but the sequence.
    pub(super) const fn shape(&self, dtype: DType) -> CpShape {
        CpShape { batch: 1, heads_q: self.heads_q, heads_kv: self.heads_kv, head_dim: self.head_dim, dtype }
    }

    /// The global mask.
    ///
    /// # Errors
    /// [`BadInput`] for a name that is no mask, or documents of a length that nobody has published.
    pub(super) fn build(&self) -> anyhow::Result<FlashMask> {
        let refused = |error: fm3_kernels::Error| BadInput::from_error(&error);
        let dims = MaskDims { batch: 1, heads: 1, seq_q: self.seq, seq_k: self.seq };
        let spec: MaskSpec = self.mask.parse().map_err(refused)?;
        // Without published lengths: a short, a middle and a long one.
        let thirds = || vec![self.seq / 8, self.seq / 4, self.seq - self.seq / 8 - self.seq / 4];
        let lengths = documents(self.seq).unwrap_or_else(thirds);
        let documents = Documents::new(vec![lengths], self.seq).map_err(refused)?;
        Ok(spec.build(dims, &documents, 1).map_err(refused)?)
    }
}

impl std::str::FromStr for Row {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("'{text}' is not ROWS,Q/KV,MASK, for example 8192,16/4,causal");
        let mut parts = text.splitn(3, ',');
        let mut part = || parts.next().ok_or_else(wanted);
        let (seq, heads, mask) = (part()?, part()?, part()?.to_owned());
        let (q, kv) = heads.split_once('/').ok_or_else(wanted)?;
        let number = |text: &str| text.parse::<usize>().map_err(|_| wanted());
        let (seq, heads_q, heads_kv) = (number(seq)?, number(q)?, number(kv)?);
        Ok(Self { seq, heads_q, heads_kv, head_dim: 128, mask, floor_ms: None, goal_ms: None })
    }
}

/// The table of two H200s.
pub(super) fn of_gpus() -> Vec<Row> {
    const K: usize = 1024;
    let row = |seq: usize, (heads_q, heads_kv), mask: &str, [floor, goal]: [f64; 2]| Row {
        seq: seq * K,
        heads_q,
        heads_kv,
        head_dim: 128,
        mask: mask.to_owned(),
        floor_ms: Some(floor),
        goal_ms: Some(goal),
    };
    vec![
        row(16, (16, 16), "causal", [1.2, 0.85]),
        row(32, (16, 16), "causal", [3.8, 3.25]),
        row(64, (16, 16), "causal", [14.2, 12.9]),
        row(128, (16, 16), "causal", [58.0, 53.0]),
        row(64, (32, 4), "causal", [28.5, 25.8]),
        row(64, (16, 16), "full", [28.3, 26.3]),
        row(64, (16, 16), "causal-document", [7.4, 6.9]),
        row(128, (32, 8), "causal-document", [12.2, 11.2]),
        row(64, (16, 16), "document", [11.6, 10.7]),
    ]
}

/// The same kinds of problems as a CPU does them in a moment.
pub(super) fn of_hosts() -> Vec<Row> {
    let row = |seq, (heads_q, heads_kv), mask: &str| Row {
        seq,
        heads_q,
        heads_kv,
        head_dim: 64,
        mask: mask.to_owned(),
        floor_ms: None,
        goal_ms: None,
    };
    vec![
        row(1024, (4, 4), "causal"),
        row(2048, (4, 4), "causal"),
        row(2048, (4, 1), "causal"),
        row(2048, (4, 4), "full"),
        row(2048, (4, 4), "causal-document"),
        row(2048, (4, 4), "document"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_mask_and_a_name_of_its_own() {
        for rows in [of_gpus(), of_hosts()] {
            let names: std::collections::BTreeSet<String> = rows.iter().map(Row::name).collect();
            assert_eq!(names.len(), rows.len());
            for row in rows.iter().filter(|row| row.seq < 40_000) {
                assert_eq!(row.build().unwrap().dims().seq_k, row.seq, "{}", row.name());
            }
        }
        assert_eq!(of_gpus()[4].name(), "64 K 32/4 causal");
        let own: Row = "500,4/2,document:docs=200+300".parse().unwrap();
        assert_eq!(own.name(), "500 4/2 document:docs=200+300");
        assert!(own.build().is_ok());
        for wrong in ["", "500", "500,4,causal", "x,4/2,causal"] {
            assert!(wrong.parse::<Row>().is_err(), "{wrong}");
        }
    }
}
