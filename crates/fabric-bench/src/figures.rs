//! Figures: what was measured, as a table, as JSON and as a drawing.
use std::fs;

use anyhow::Context;
use comfy_table::{Table, presets};
use serde::Serialize;
use symm_buffer::Pe;
use symm_buffer::nvshmem::cudarc::driver::sys::CUdevice_attribute;

use crate::rank::Rank;
use crate::{Args, plot};

/// Said of figures that are taken on one GPU: they are no figures of a link, and no goal for one is compared with them.
pub(crate) const NO_LINK: &str = "both ranks share one GPU: no link is measured";

/// One line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// What is measured.
    pub(crate) name: String,
    /// Bytes of a message; 0 where it is not about bytes.
    pub(crate) bytes: usize,
    /// Microseconds a message or call: median, least, most over launches, of the slowest rank.
    pub(crate) micros: [f64; 3],
}

impl Figure {
    /// GB/s each way.
    pub(crate) fn rate(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.bytes as f64 / self.micros[0] / 1e3)
    }
}

/// All lines of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    device: String,
    gpus: usize,
    ranks: u32,
    /// Rates are then of copies inside that GPU, and waits for the other rank are of the driver's turns.
    shares_gpu: bool,
    driver: String,
    nvshmem: String,
    lines: Vec<Figure>,
    #[serde(skip)]
    only: Option<String>,
    #[serde(skip)]
    speaks: bool,
}

impl Figures {
    pub(crate) fn new(args: &Args, gpus: usize, rank: &Rank) -> anyhow::Result<Self> {
        let context = rank.fabric.context();
        let clock = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
        let nvshmem = nvshmem_sys::load(&nvshmem_sys::Search::system())?;
        Ok(Self {
            device: format!("{}, {} MHz at most", context.name()?, clock / 1000),
            gpus,
            ranks: args.ranks,
            shares_gpu: rank.shares_gpu()?,
            driver: crate::raw::driver_version()?,
            nvshmem: nvshmem.version().to_string(),
            lines: Vec::new(),
            only: args.only.clone(),
            speaks: rank.me() == Pe(0),
        })
    }

    /// Whether a line is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|word| name.contains(word))
    }

    /// Keeps a line: microseconds of each launch.
    pub(crate) fn add(&mut self, name: &str, bytes: usize, mut micros: Vec<f64>) {
        micros.sort_by(f64::total_cmp);
        let [Some(&least), Some(&most)] = [micros.first(), micros.last()] else { return };
        let line = Figure { name: name.to_owned(), bytes, micros: [micros[micros.len() / 2], least, most] };
        if self.speaks {
            println!("{name} {bytes}: {:.2} us", line.micros[0]);
        }
        self.lines.push(line);
    }

    /// Prints and writes.
    pub(crate) fn finish(&self, args: &Args) -> anyhow::Result<()> {
        println!(
            "\n{}; {} GPU(s), {} processes; driver {}, NVSHMEM {}. Microseconds: median (least .. most).",
            self.device, self.gpus, self.ranks, self.driver, self.nvshmem
        );
        if self.shares_gpu {
            println!(
                "*** {NO_LINK}. ***\nRates are of copies inside it; what waits for the other rank waits for its turn on \
                 the GPU. Nothing here is to be compared with goals."
            );
        }
        let mut table = Table::new();
        let rate = if self.shares_gpu { "GB/s inside one GPU" } else { "GB/s each way" };
        table.load_style(presets::ASCII_MARKDOWN).set_header(["what", "bytes", "us", rate]);
        for line in &self.lines {
            let [median, least, most] = line.micros;
            let rate = line.rate().map_or_else(String::new, |rate| format!("{rate:.1}"));
            let bytes = if line.bytes > 0 { size(line.bytes) } else { String::new() };
            table.add_row([line.name.clone(), bytes, format!("{median:.2} ({least:.2} .. {most:.2})"), rate]);
        }
        println!("{table}");
        if let Some(file) = &args.json {
            let text = serde_json::to_string_pretty(self)?;
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        if let Some(file) = &args.svg {
            let loud = if self.shares_gpu { format!("; {NO_LINK}") } else { String::new() };
            let title = format!("{rate}, by message size{loud}");
            fs::write(file, plot::svg(&title, &self.lines))
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }
}

/// Bytes in binary units.
pub(crate) fn size(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
