//! PyTorch's context parallelism on the same GPUs, by docs/peers/context_parallel.py: when our ranks are done, it starts its own.
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use comfy_table::Table;
use serde::{Deserialize, Serialize};

use super::rows::Row;
use crate::bench::Summary;
use crate::input::BadInput;

const SCRIPT: &str = include_str!("../../../docs/peers/context_parallel.py");

/// Whose context parallelism is timed, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Peer {
    /// torch.distributed.tensor.experimental.context_parallel over NCCL.
    Torch,
}

#[derive(Serialize)]
struct Request {
    warmups: u32,
    launches: u32,
    rows: Vec<Asked>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Asked {
    seq: usize,
    heads_q: usize,
    heads_kv: usize,
    head_dim: usize,
    /// None: a mask that it does not offer.
    causal: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reply {
    Timed { row: usize, name: String, ms: Vec<f64> },
    Refused { row: usize, name: String, error: String },
    Nothing { error: String },
    Done { done: bool },
}

/// One way of doing one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PeerLine {
    row: String,
    method: String,
    /// Milliseconds of the slowest rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// That there is something to run it on.
///
/// # Errors
/// [`BadInput`] with fewer than two GPUs.
pub(super) fn check(gpus: usize) -> anyhow::Result<()> {
    if gpus < 2 {
        let text =
            format!("--peer torch needs at least 2 GPUs of this machine, here are {gpus}; leave it out");
        return Err(BadInput(text).into());
    }
    Ok(())
}

/// Has all rows timed.
///
/// # Errors
/// When Python does not start, has no PyTorch, or ends before it is done.
pub(super) fn time(python: &str, rows: &[Row], launches: u32) -> anyhow::Result<Vec<PeerLine>> {
    let request = Request { warmups: 2, launches, rows: rows.iter().map(asked).collect() };
    // It starts itself again, once per GPU.
    let mut script = tempfile::Builder::new().suffix(".py").tempfile()?;
    script.write_all(SCRIPT.as_bytes())?;
    let mut command = Command::new(python);
    command.arg(script.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {python}"))?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("{python} has no pipes");
    };
    // One that has ended already says why on its output.
    _ = writeln!(input, "{}", serde_json::to_string(&request)?);
    drop(input);
    let lines = read(output, rows);
    _ = child.kill();
    _ = child.wait();
    lines
}

fn asked(row: &Row) -> Asked {
    let Row { seq, heads_q, heads_kv, head_dim, .. } = *row;
    let causal = match row.mask.as_str() {
        "causal" => Some(true),
        "full" => Some(false),
        _ => None,
    };
    Asked { seq, heads_q, heads_kv, head_dim, causal }
}

fn read(output: impl Read, rows: &[Row]) -> anyhow::Result<Vec<PeerLine>> {
    let mut lines = Vec::new();
    let name_of = |row: usize| rows.get(row).map_or_else(String::new, Row::name);
    for line in BufReader::new(output).lines() {
        let line = line?;
        // Libraries print what they like; an answer is an object.
        if !line.starts_with('{') {
            continue;
        }
        match serde_json::from_str(&line).with_context(|| format!("the peer answered {line}"))? {
            Reply::Timed { row, name, ms } => {
                let row = name_of(row);
                lines.push(PeerLine { row, method: name, ms: Summary::of(&ms), error: None });
            }
            Reply::Refused { row, name, error } => {
                lines.push(PeerLine { row: name_of(row), method: name, ms: None, error: Some(error) });
            }
            Reply::Nothing { error } => bail!("{error}"),
            Reply::Done { done: true } => return Ok(lines),
            Reply::Done { .. } => {}
        }
    }
    bail!("the peer ended before it was done")
}

/// For people.
pub(super) fn print(lines: &[PeerLine]) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["problem", "peer", "ms: median (least .. most)"]);
    for PeerLine { row, method, ms, error } in lines {
        let time = ms.map(|of| format!("{:.3} ({:.3} .. {:.3})", of.median, of.min, of.max));
        let text = time.or_else(|| error.clone()).unwrap_or_default();
        table.add_row([row.as_str(), method, text.as_str()]);
    }
    println!("\n{table}");
}

#[cfg(test)]
mod tests {
    use super::super::rows;
    use super::*;

    #[test]
    fn masks_that_it_has_are_asked_for_and_others_are_not() {
        let rows = rows::of_gpus();
        assert_eq!(
            asked(&rows[4]),
            Asked { seq: 65536, heads_q: 32, heads_kv: 4, head_dim: 128, causal: Some(true) }
        );
        assert_eq!((asked(&rows[5]).causal, asked(&rows[6]).causal), (Some(false), None));
    }

    #[test]
    fn answers_are_read_until_it_is_done() {
        let rows = rows::of_gpus();
        let text = "[W1123 noise]\n{\"row\": 1, \"name\": \"ring\", \"ms\": [2.0, 1.0, 4.0]}\n\
                    {\"row\": 6, \"name\": \"ring\", \"error\": \"not offered\"}\n{\"done\": true}\n";
        let lines = read(text.as_bytes(), &rows).unwrap();
        assert_eq!(lines[0].ms, Some(Summary { median: 2.0, min: 1.0, max: 4.0 }));
        assert_eq!(
            (lines[1].row.as_str(), lines[1].error.as_deref()),
            ("64 K 16/16 causal-document", Some("not offered"))
        );
        let cut = read(&text.as_bytes()[..text.len() - 15], &rows).unwrap_err();
        assert!(cut.to_string().contains("before it was done"));
        let none = read("{\"error\": \"no PyTorch\"}\n".as_bytes(), &rows).unwrap_err();
        assert_eq!(none.to_string(), "no PyTorch");
        assert!(check(1).unwrap_err().is::<BadInput>() && check(2).is_ok());
    }

    #[test]
    fn a_python_without_torch_says_so() {
        if crate::shell::works("python3", &["--version"])
            && !crate::shell::works("python3", &["-c", "import torch"])
        {
            let error = time("python3", &rows::of_gpus(), 1).unwrap_err();
            assert!(error.to_string().contains("no PyTorch"), "{error}");
        }
        assert!(time("no-such-program", &[], 1).is_err());
    }
}
