//! What was measured, as tables and as JSON.
use comfy_table::Table;
use fm3_kernels::shape::Dims;
use serde::Serialize;

use super::cases::{Case, Pass, Target};
use super::costs::Cost;
use super::monitor::Reading;
use super::peers::MATMUL;
use super::stats::Summary;

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub device: String,
    pub dtype: &'static str,
    pub pass: Pass,
    /// Whether all lines were asked to add dQ in one order.
    pub deterministic: bool,
    pub rows: Vec<Row>,
    pub costs: Vec<Cost>,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    case: String,
    dims: Dims,
    /// Visible pairs of all query heads and sequences.
    pairs: u64,
    /// Of all pairs.
    density: f64,
    /// Whether dQ is added in one order.
    deterministic: bool,
    /// 4 * d * pairs, or 10 for the backward.
    pub flops: f64,
    pub launches: usize,
    ms: Option<Summary>,
    tflops: Option<f64>,
    /// To enqueue a call, microseconds.
    pub host_us: Option<Summary>,
    matmul_tflops: Option<f64>,
    /// Of the matrix product's rate.
    of_matmul: Option<f64>,
    pub reading: Option<Reading>,
    pub peer_name: Option<String>,
    pub peer: Option<PeerFigures>,
    floor: Target,
    goal: Target,
    pub notes: Vec<String>,
}

/// A peer's.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PeerFigures {
    ms: Summary,
    tflops: f64,
}

impl PeerFigures {
    pub(super) fn new(ms: Summary, flops: f64) -> Self {
        Self { ms, tflops: tflops(flops, ms) }
    }
}

impl Row {
    /// Not measured yet.
    pub(super) fn new(case: &Case, pairs: u64) -> Self {
        let Dims { batch, heads_q, seq_q, seq_k, head_dim, .. } = case.dims;
        let all = (batch * heads_q) as f64 * seq_q as f64 * seq_k as f64;
        Self {
            case: case.name.clone(),
            dims: case.dims,
            pairs,
            density: pairs as f64 / all,
            deterministic: case.deterministic,
            flops: case.pass.operations() * head_dim as f64 * pairs as f64,
            launches: 0,
            ms: None,
            tflops: None,
            host_us: None,
            matmul_tflops: None,
            of_matmul: None,
            reading: None,
            peer_name: None,
            peer: None,
            floor: case.floor,
            goal: case.goal,
            notes: Vec::new(),
        }
    }

    /// Milliseconds of ours and of the matrix product.
    pub(super) fn set_times(&mut self, ms: Option<Summary>, matmul: Option<Summary>) {
        self.ms = ms;
        self.tflops = ms.map(|ms| tflops(self.flops, ms));
        self.matmul_tflops = matmul.map(|ms| tflops(2.0 * (MATMUL as f64).powi(3), ms));
        self.of_matmul = self.tflops.zip(self.matmul_tflops).map(|(ours, matmul)| ours / matmul);
    }

    fn ratio(&self) -> Option<f64> {
        self.tflops.zip(self.peer).map(|(ours, peer)| ours / peer.tflops)
    }

    fn verdict(&self) -> &'static str {
        let reached =
            |target: Target| target.reached(self.tflops.unwrap_or(0.0), self.peer.map(|peer| peer.tflops));
        match (reached(self.goal), reached(self.floor)) {
            (Some(true), _) => "goal",
            (_, Some(true)) => "floor",
            (_, Some(false)) => "BELOW",
            (_, None) => "-",
        }
    }
}

impl Report {
    /// For people.
    pub(super) fn tables(&self) -> String {
        let order = if self.deterministic { ", deterministic" } else { "" };
        let pass = format!("{:?}{order}", self.pass).to_lowercase();
        let mut text = format!("{} ({}, {pass})\n{}\n", self.device, self.dtype, self.rates());
        if !self.costs.is_empty() {
            text += &format!("{}\n", self.fixed());
        }
        for row in &self.rows {
            let names = row.peer_name.iter().map(|name| format!("peer: {name}"));
            for note in names.chain(row.notes.iter().cloned()) {
                text += &format!("{}: {note}\n", row.case);
            }
        }
        text
    }

    fn rates(&self) -> Table {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header([
            "case",
            "density",
            "ms (min-max)",
            "TFLOP/s",
            "matmul",
            "of it",
            "MHz",
            "W",
            "peer",
            "x peer",
            "floor",
            "goal",
            "reached",
        ]);
        for row in &self.rows {
            let number = |value: Option<f64>, digits: usize| {
                value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
            };
            table.add_row([
                row.case.clone(),
                format!("{:.5}", row.density),
                row.ms.map_or("-".to_owned(), |ms| format!("{:.3} ({:.3}-{:.3})", ms.median, ms.min, ms.max)),
                number(row.tflops, 0),
                number(row.matmul_tflops, 0),
                number(row.of_matmul, 2),
                number(row.reading.map(|reading| reading.clock_mhz), 0),
                number(row.reading.map(|reading| reading.power_w), 0),
                number(row.peer.map(|peer| peer.tflops), 0),
                number(row.ratio(), 2),
                row.floor.to_string(),
                row.goal.to_string(),
                row.verdict().to_owned(),
            ]);
        }
        table
    }

    fn fixed(&self) -> Table {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header(["cost", "us (min-max)", "floor", "goal", "reached"]);
        for cost in &self.costs {
            let limit = |limit: Option<f64>| limit.map_or("-".to_owned(), |us| format!("{us:.0}"));
            let Summary { median, min, max } = cost.us;
            table.add_row([
                cost.name.clone(),
                format!("{median:.1} ({min:.1}-{max:.1})"),
                limit(cost.floor_us),
                limit(cost.goal_us),
                cost.verdict().to_owned(),
            ]);
        }
        table
    }
}

fn tflops(flops: f64, ms: Summary) -> f64 {
    flops / ms.median * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::cases;

    #[test]
    fn rates_count_visible_pairs_and_stand_beside_the_peer() {
        let case = cases::all(Pass::Forward).remove(0);
        // Full, 2 x 8192, 16 heads: 4 * 128 * 2 * 16 * 8192^2 = 1.0995e12 operations.
        let mut row = Row::new(&case, 2 * 16 * 8192 * 8192);
        assert_eq!((row.density, row.verdict()), (1.0, "-"));
        let ms = |median| Summary { median, min: median, max: median };
        row.set_times(Some(ms(1.0995 / 0.72)), Some(ms(1.0995 / 0.8)));
        assert_eq!((row.tflops.unwrap().round(), row.matmul_tflops.unwrap().round()), (720.0, 800.0));
        assert_eq!(row.verdict(), "-");
        for (peer, verdict) in [(660.0, "goal"), (680.0, "floor"), (730.0, "BELOW")] {
            row.peer = Some(PeerFigures::new(ms(row.flops / peer * 1e-9), row.flops));
            assert_eq!(row.verdict(), verdict, "{peer}");
        }
        let report = Report {
            device: "a card".to_owned(),
            dtype: "bf16",
            pass: Pass::Forward,
            deterministic: false,
            rows: vec![row],
            costs: Vec::new(),
        };
        let text = report.tables();
        assert!(text.contains("a card (bf16, forward)") && text.contains("| full 2x8192 16/16"), "{text}");
        let backward = Row::new(&cases::all(Pass::Backward)[0], 1000);
        assert_eq!(backward.flops, 10.0 * 128.0 * 1000.0);
        let json = serde_json::to_value(&report).unwrap();
        assert!((json["rows"][0]["of_matmul"].as_f64().unwrap() - 0.9).abs() < 1e-9, "{json}");
    }

    #[test]
    fn dq_in_one_order_stands_beside_dq_in_any() {
        let case = cases::all(Pass::Backward).into_iter().find(|case| case.deterministic).unwrap();
        let mut row = Row::new(&case, 1000);
        let ms = |median| Summary { median, min: median, max: median };
        row.peer = Some(PeerFigures::new(ms(1.0), row.flops));
        let verdicts = [1.14, 1.16].map(|median| {
            row.set_times(Some(ms(median)), None);
            row.verdict()
        });
        assert_eq!(verdicts, ["floor", "BELOW"]);
        let report = Report {
            device: "a card".to_owned(),
            dtype: "f16",
            pass: Pass::Backward,
            deterministic: true,
            rows: vec![row],
            costs: Vec::new(),
        };
        assert!(report.tables().contains("a card (f16, backward, deterministic)"));
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["deterministic"] == true && json["rows"][0]["deterministic"] == true, "{json}");
        assert!((json["rows"][0]["floor"]["ratio"].as_f64().unwrap() - 1.0 / 1.15).abs() < 1e-9, "{json}");
    }
}
