//! Flags of `cargo xtask demo`, parsed into types: later code cannot meet a value that makes no sense.
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use fm3_kernels::DType;
use fm3_kernels::shape::{Dims, Shape};

use crate::input::BadInput;

/// Largest inputs that a demo may ask for, in 1e9 bytes; outputs, gradients and gathered K, V come on top.
const MAX_GIGABYTES: f64 = 16.0;

/// Runs context-parallel attention over real text, forward and backward, and checks it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Ranks that share the sequence.
    #[arg(long, default_value = "4", value_parser = positive)]
    pub ranks: NonZeroUsize,
    /// Rows of each sequence; a row is one byte of text.
    #[arg(long, default_value = "8192", value_parser = positive)]
    pub seq_len: NonZeroUsize,
    /// Sequences.
    #[arg(long, default_value = "1", value_parser = positive)]
    pub batch: NonZeroUsize,
    /// Query heads / KV heads.
    #[arg(long, default_value = "8/2", value_name = "Q/KV")]
    pub heads: Heads,
    /// Elements per head: a multiple of 8, at most 256.
    #[arg(long, default_value = "64", value_parser = positive)]
    pub head_dim: NonZeroUsize,
    /// Mask by name, `name:key=value,...`, or `file:PATH` (.npy, i32 [b, h, s, C]).
    #[arg(long, default_value = "causal-document")]
    pub mask: MaskArg,
    /// Whether the mask of `file:PATH` is causal as well.
    #[arg(long, value_name = "true|false")]
    pub causal: Option<bool>,
    /// How rows are dealt to ranks.
    #[arg(long, default_value = "dual-chunk")]
    pub sharding: String,
    /// Element type of Q, K, V, O and the gradients.
    #[arg(long, default_value = "bf16")]
    pub dtype: DType,
    /// Seed of embeddings, projections, dO and injected faults.
    #[arg(long, default_value = "1")]
    pub seed: u64,
    /// Folder whose text files are the documents [default: this repository].
    #[arg(long, value_name = "DIR")]
    pub corpus: Option<PathBuf>,
    /// Largest document in bytes; a longer file becomes several [default: seq-len / 8].
    #[arg(long, value_name = "BYTES", value_parser = positive)]
    pub max_document: Option<NonZeroUsize>,
    /// Emulated link between ranks [default: as fast as memory].
    #[arg(long, value_name = "GBps,us")]
    pub link: Option<LinkArg>,
    /// Fault to inject: `delay=5ms`, `lost` or `late` signals.
    #[arg(long, value_name = "FAULT")]
    pub inject: Option<InjectArg>,
    /// Whether communication hides behind compute.
    #[arg(long, default_value = "on", value_name = "on|off")]
    pub overlap: OverlapArg,
    /// Also prove the plans of all ranks: no wait without end, no slot overwritten too early, nothing counted twice.
    #[arg(long)]
    pub check: bool,
    /// Also write the figures to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

impl DemoArgs {
    /// Largest document in bytes.
    pub(crate) fn max_document(&self) -> NonZeroUsize {
        self.max_document
            .unwrap_or_else(|| NonZeroUsize::new(self.seq_len.get() / 8).unwrap_or(NonZeroUsize::MIN))
    }

    /// The whole problem: every row is a query and a key.
    ///
    /// # Errors
    /// [`BadInput`] for a head dim or a length that the engine does not take.
    pub(crate) fn shape(&self) -> Result<Shape, BadInput> {
        let rows = self.seq_len.get();
        let dims = Dims {
            batch: self.batch.get(),
            heads_q: self.heads.q,
            heads_kv: self.heads.kv,
            seq_q: rows,
            seq_k: rows,
            head_dim: self.head_dim.get(),
        };
        Shape::new(dims).map_err(|error| BadInput::from_error(&error))
    }

    /// Checks what no flag can check alone.
    ///
    /// # Errors
    /// [`BadInput`] with both values.
    pub(crate) fn check(&self) -> Result<(), BadInput> {
        let (ranks, rows) = (self.ranks.get(), self.seq_len.get());
        if ranks > rows {
            return Err(BadInput(format!(
                "--ranks {ranks} is more than --seq-len {rows}; give each rank a row"
            )));
        }
        let d = self.shape()?.dims();
        let elements =
            [d.batch, d.seq_q, d.heads_q + d.heads_kv, d.head_dim].iter().map(|&n| n as f64).product::<f64>();
        // Q and dO have the query heads, K and V the KV heads, each 4 bytes.
        let gigabytes = elements * 8e-9;
        if gigabytes > MAX_GIGABYTES {
            return Err(BadInput(format!(
                "--batch {} x --seq-len {rows} x --heads {}/{} x --head-dim {} needs {gigabytes:.0} GB for its inputs; \
                 stay under {MAX_GIGABYTES} GB",
                d.batch, d.heads_q, d.heads_kv, d.head_dim
            )));
        }
        if self.causal.is_some() && !matches!(self.mask, MaskArg::File(_)) {
            let mask = &self.mask;
            return Err(BadInput(format!(
                "--causal goes with --mask file:PATH; '{mask}' says itself if it is causal"
            )));
        }
        Ok(())
    }
}

/// Numbers of heads as `8/2`, or `8` for as many KV heads as query heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Query heads.
    pub q: usize,
    /// KV heads; divides `q`.
    pub kv: usize,
}

impl FromStr for Heads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (q, kv) = text.split_once('/').unwrap_or((text, text));
        let number = |part: &str| part.parse::<NonZeroUsize>().map(NonZeroUsize::get);
        let (Ok(q), Ok(kv)) = (number(q), number(kv)) else {
            return Err("write two positive numbers, such as 8/2".to_owned());
        };
        if !q.is_multiple_of(kv) {
            return Err(format!("{q} query heads are not a multiple of {kv} KV heads"));
        }
        Ok(Self { q, kv })
    }
}

/// A mask as the user writes it; what the names and keys mean is not decided here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MaskArg {
    /// `name` or `name:key=value,key=value`.
    Named {
        /// Before the colon.
        name: String,
        /// Keys and values in the order given; no key twice.
        params: Vec<(String, String)>,
    },
    /// `file:PATH`.
    File(PathBuf),
}

impl FromStr for MaskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once(':').map_or((text, None), |(name, rest)| (name, Some(rest)));
        match (name, rest) {
            ("", _) => return Err("write a name, name:key=value or file:PATH".to_owned()),
            ("file", None | Some("")) => return Err("'file' needs a path: file:PATH".to_owned()),
            ("file", Some(path)) => return Ok(Self::File(PathBuf::from(path))),
            _ => {}
        }
        let mut params: Vec<(String, String)> = Vec::new();
        for pair in rest.into_iter().flat_map(|rest| rest.split(',')) {
            let Some((key, value)) = pair.split_once('=').filter(|(k, v)| !k.is_empty() && !v.is_empty())
            else {
                return Err(format!("'{pair}' is not key=value"));
            };
            if params.iter().any(|(known, _)| known == key) {
                return Err(format!("'{key}' is given twice"));
            }
            params.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self::Named { name: name.to_owned(), params })
    }
}

impl std::fmt::Display for MaskArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Named { name, params } => {
                let params: Vec<_> = params.iter().map(|(key, value)| format!("{key}={value}")).collect();
                let colon = if params.is_empty() { "" } else { ":" };
                write!(f, "{name}{colon}{}", params.join(","))
            }
        }
    }
}

/// Emulated link: `GBps,us`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LinkArg {
    /// 1e9 bytes a second.
    pub gigabytes_per_second: f64,
    /// Time before the first byte arrives.
    pub latency: Duration,
}

impl FromStr for LinkArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || "write GB/s and microseconds, such as 0.5,20".to_owned();
        let (rate, latency) = text.split_once(',').ok_or_else(wanted)?;
        let rate: f64 = rate.trim().parse().map_err(|_| wanted())?;
        let latency: f64 = latency.trim().parse().map_err(|_| wanted())?;
        if !rate.is_finite() || rate <= 0.0 {
            return Err(format!("{rate} GB/s is not a rate; it must be above 0"));
        }
        let latency = Duration::try_from_secs_f64(latency * 1e-6)
            .map_err(|_| format!("{latency} us is not a latency; it must be 0 or more"))?;
        Ok(Self { gigabytes_per_second: rate, latency })
    }
}

/// Fault that the emulated link shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InjectArg {
    /// Each operation takes a random extra time up to this.
    Delay(Duration),
    /// One signal never arrives.
    Lost,
    /// One signal arrives after its deadline.
    Late,
}

impl FromStr for InjectArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("delay=")) {
            ("lost", _) => Ok(Self::Lost),
            ("late", _) => Ok(Self::Late),
            (_, Some(time)) => duration(time).map(Self::Delay),
            _ => Err("write delay=5ms, lost or late".to_owned()),
        }
    }
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OverlapArg {
    /// Communication hides behind compute.
    On,
    /// Communicate first, then compute.
    Off,
}

fn positive(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "write a whole number of at least 1".to_owned())
}

/// A whole or broken number with its unit: `300us`, `5ms`, `1.5s`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(format!("'{text}' has no unit; write us, ms or s, such as 5ms")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("'{digits}' is not a number"))?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| format!("'{text}' is not a time of 0 or more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        demo: DemoArgs,
    }

    fn parse(line: &str) -> Result<DemoArgs, String> {
        let words = std::iter::once("demo").chain(line.split_whitespace());
        let demo = <Line as clap::Parser>::try_parse_from(words).map_err(|e| e.to_string())?.demo;
        demo.check().map_err(|e| e.to_string())?;
        Ok(demo)
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let args = parse("").unwrap();
        assert_eq!((args.ranks.get(), args.seq_len.get(), args.batch.get()), (4, 8192, 1));
        assert_eq!((args.heads, args.head_dim.get()), (Heads { q: 8, kv: 2 }, 64));
        assert_eq!(
            (args.mask.to_string().as_str(), args.sharding.as_str()),
            ("causal-document", "dual-chunk")
        );
        assert_eq!((args.dtype, args.seed, args.overlap), (DType::Bf16, 1, OverlapArg::On));
        assert_eq!(args.max_document().get(), 1024);
        assert_eq!(parse("--seq-len 5 --ranks 1").unwrap().max_document().get(), 1);
    }

    #[test]
    fn values_with_structure_are_read() {
        let args =
            parse("--mask sliding-window:window=16 --link 0.5,20 --inject delay=5ms --heads 6").unwrap();
        let params = vec![("window".to_owned(), "16".to_owned())];
        assert_eq!(args.mask, MaskArg::Named { name: "sliding-window".to_owned(), params });
        let link = LinkArg { gigabytes_per_second: 0.5, latency: Duration::from_micros(20) };
        assert_eq!(args.link, Some(link));
        assert_eq!(args.inject, Some(InjectArg::Delay(Duration::from_millis(5))));
        assert_eq!(args.heads, Heads { q: 6, kv: 6 });
        let args = parse("--mask file:a:b.npy --causal true").unwrap();
        assert_eq!((args.mask, args.causal), (MaskArg::File("a:b.npy".into()), Some(true)));
    }

    #[test]
    fn nonsense_is_refused_with_its_value() {
        let cases = [
            ("--ranks 0", "'0' for '--ranks <RANKS>': write a whole number of at least 1"),
            ("--max-document 0", "at least 1"),
            ("--seq-len 0", "at least 1"),
            ("--ranks 9 --seq-len 8", "--ranks 9 is more than --seq-len 8"),
            ("--head-dim 12", "head_dim = 12"),
            ("--seq-len 2147483647", "needs"),
            ("--seq-len 4294967296", "4294967296"),
            ("--batch 18446744073709551615", "GB"),
            ("--heads 8/3", "8 query heads are not a multiple of 3"),
            ("--heads 8/0", "two positive numbers"),
            ("--mask :x=1", "name:key=value"),
            ("--mask file:", "needs a path"),
            ("--mask causal:x", "'x' is not key=value"),
            ("--mask causal:x=1,x=2", "'x' is given twice"),
            ("--causal true", "--causal goes with --mask file:PATH"),
            ("--dtype fp8", "fp8"),
            ("--link 0,1", "0 GB/s"),
            ("--link 1", "GB/s and microseconds"),
            ("--link 1,-3", "-3 us"),
            ("--inject delay=5", "'5' has no unit"),
            ("--inject maybe", "delay=5ms, lost or late"),
            ("--overlap maybe", "maybe"),
        ];
        for (line, part) in cases {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
