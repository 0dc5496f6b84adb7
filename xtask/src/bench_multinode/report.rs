//! The table, and the same as JSON.
use comfy_table::Table;
use serde::Serialize;

use super::rows::Row;
use super::trace::Traced;
use crate::bench::Summary;

/// What one rank measured of one row; milliseconds, one for each launch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
pub(super) struct Measured {
    /// A call, overlapped.
    pub overlapped: Vec<f64>,
    /// The same attention when everything is there.
    pub attention: Vec<f64>,
    /// Gather, then attend.
    pub gathered: Vec<f64>,
    /// Bytes sent, and bytes that would be sent if the mask were not looked at.
    pub sent: u64,
    pub sent_mask_blind: u64,
    /// Operations on visible pairs.
    pub flops: u64,
    /// Calls to the driver that a call makes, as the executor counts them.
    pub driver_calls: u64,
    /// The calling thread's microseconds in a call.
    pub host_us: f64,
    /// By the kernels' own clocks, of other calls than those above: microseconds in which a block waited for keys, and
    /// the mean that a block waited; the rate of the pushes, 0 for a rank that has none.
    pub waited_us: Vec<f64>,
    pub idle_us: Vec<f64>,
    pub copies_gigabytes_per_s: f64,
    /// The last of these calls.
    pub traced: Option<Traced>,
}

/// One line.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    pub name: String,
    pub row: Row,
    /// Milliseconds of the slowest rank.
    pub overlapped: Summary,
    pub attention: Summary,
    pub gathered: Summary,
    pub exposed_us: f64,
    pub exposed_percent: f64,
    pub tflops_per_rank: f64,
    /// Sent by the rank that sends most.
    pub sent_bytes: u64,
    pub sent_bytes_mask_blind: u64,
    /// Rate of the rank that sends most if its bytes took the whole call.
    pub gigabytes_per_s: f64,
    /// Operations of the rank that has most over the mean.
    pub imbalance: f64,
    pub driver_calls: u64,
    pub host_us: f64,
    /// Microseconds of the slowest rank in which a block of attention waited, and the mean that its blocks waited; by the
    /// kernel, on GPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_us: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_us: Option<Summary>,
    /// Rate of the pushes of the rank whose are slowest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies_gigabytes_per_s: Option<f64>,
}

impl Line {
    /// From all ranks' times; nothing when somebody has measured nothing.
    pub(super) fn of(row: &Row, ranks: &[Measured]) -> Option<Self> {
        let slowest = |times: fn(&Measured) -> &Vec<f64>| {
            let launches = ranks.iter().map(|rank| times(rank).len()).min()?;
            let most = |launch: usize| ranks.iter().map(|rank| times(rank)[launch]).fold(0.0, f64::max);
            Summary::of(&(0..launches).map(most).collect::<Vec<_>>())
        };
        let overlapped = slowest(|rank| &rank.overlapped)?;
        let attention = slowest(|rank| &rank.attention)?;
        let gathered = slowest(|rank| &rank.gathered)?;
        let most = |of: fn(&Measured) -> u64| ranks.iter().map(of).max().unwrap_or(0);
        let flops: f64 = ranks.iter().map(|rank| rank.flops as f64).sum();
        let mean = flops / ranks.len() as f64;
        let exposed = (overlapped.median - attention.median).max(0.0);
        let host_us = ranks.iter().map(|rank| rank.host_us).fold(0.0, f64::max);
        let rates = ranks.iter().map(|rank| rank.copies_gigabytes_per_s).filter(|rate| *rate > 0.0);
        Some(Self {
            name: row.name(),
            row: row.clone(),
            exposed_us: exposed * 1e3,
            exposed_percent: 100.0 * exposed / attention.median,
            tflops_per_rank: mean / overlapped.median / 1e9,
            sent_bytes: most(|rank| rank.sent),
            sent_bytes_mask_blind: most(|rank| rank.sent_mask_blind),
            gigabytes_per_s: most(|rank| rank.sent) as f64 / overlapped.median / 1e6,
            imbalance: if mean > 0.0 { most(|rank| rank.flops) as f64 / mean } else { 1.0 },
            driver_calls: most(|rank| rank.driver_calls),
            host_us,
            waited_us: slowest(|rank| &rank.waited_us),
            idle_us: slowest(|rank| &rank.idle_us),
            copies_gigabytes_per_s: rates.min_by(f64::total_cmp),
            overlapped,
            attention,
            gathered,
        })
    }
}

/// All lines and where they were measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub backend: String,
    pub device: String,
    pub ranks: usize,
    pub lines: Vec<Line>,
}

impl Report {
    /// The table and a line about it.
    pub(super) fn print(&self) {
        println!(
            "\n{} ranks, {}, {}. Milliseconds of the slowest rank: median (least .. most).\n",
            self.ranks, self.backend, self.device
        );
        let mut table = Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN);
        table.set_header([
            "problem",
            "overlapped",
            "attention only",
            "gather, then attend",
            "exposed us",
            "%",
            "waited us",
            "idle us",
            "TFLOP/s a rank",
            "MB sent",
            "mask-blind MB",
            "GB/s",
            "copies GB/s",
            "imbalance",
            "host us",
            "driver calls",
            "floor, goal",
        ]);
        let number = |of: Option<f64>| of.map_or_else(String::new, |of| format!("{of:.1}"));
        let times = |of: &Summary| format!("{:.3} ({:.3} .. {:.3})", of.median, of.min, of.max);
        for line in &self.lines {
            let wanted = line.row.floor_ms.zip(line.row.goal_ms);
            table.add_row([
                line.name.clone(),
                times(&line.overlapped),
                times(&line.attention),
                times(&line.gathered),
                format!("{:.0}", line.exposed_us),
                format!("{:.1}", line.exposed_percent),
                number(line.waited_us.map(|of| of.median)),
                number(line.idle_us.map(|of| of.median)),
                format!("{:.2}", line.tflops_per_rank),
                format!("{:.2}", line.sent_bytes as f64 / 1e6),
                format!("{:.2}", line.sent_bytes_mask_blind as f64 / 1e6),
                format!("{:.1}", line.gigabytes_per_s),
                number(line.copies_gigabytes_per_s),
                format!("{:.2}", line.imbalance),
                format!("{:.0}", line.host_us),
                line.driver_calls.to_string(),
                wanted.map_or_else(String::new, |(floor, goal)| format!("{floor}, {goal}")),
            ]);
        }
        println!("{table}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows;
    use super::*;

    #[test]
    fn a_line_is_of_the_slowest_rank_of_each_launch() {
        let row = &rows::of_gpus()[0];
        let rank = |overlapped: [f64; 3], flops| Measured {
            overlapped: overlapped.to_vec(),
            attention: vec![2.0; 3],
            gathered: vec![4.0, 5.0, 6.0],
            sent: flops,
            sent_mask_blind: 2 * flops,
            flops,
            driver_calls: 7,
            host_us: 30.0,
            waited_us: vec![overlapped[0] * 10.0],
            idle_us: vec![1.0],
            copies_gigabytes_per_s: 300.0 - overlapped[0],
            traced: None,
        };
        let line = Line::of(row, &[rank([2.0, 3.0, 2.5], 10), rank([2.2, 2.1, 2.6], 30)]).unwrap();
        assert_eq!((line.overlapped.min, line.overlapped.median, line.overlapped.max), (2.2, 2.6, 3.0));
        assert!((line.exposed_us - 600.0).abs() < 1e-6 && (line.exposed_percent - 30.0).abs() < 1e-6);
        assert!((line.imbalance - 1.5).abs() < 1e-9);
        assert_eq!((line.waited_us.unwrap().median, line.copies_gigabytes_per_s), (22.0, Some(297.8)));
        assert_eq!((line.sent_bytes, line.sent_bytes_mask_blind), (30, 60));
        assert!(Line::of(row, &[rank([1.0; 3], 1), Measured::default()]).is_none());
    }
}
