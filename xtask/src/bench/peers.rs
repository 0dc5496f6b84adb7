//! Others' attention in the same run: Python programs of docs/peers that answer a line of JSON with a line of JSON.
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, bail};
use fm3_kernels::shape::Dims;
use serde::{Deserialize, Serialize};

use super::cases::{Pass, Rival};
use super::masks::documents;

const SDPA: &str = include_str!("../../../docs/peers/sdpa.py");
const FLEX: &str = include_str!("../../../docs/peers/flex.py");

/// Rows, columns and depth of the matrix product that is timed for the rate of the tensor cores.
pub(super) const MATMUL: usize = 8192;

/// How often something is done before and while it is timed.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Launches {
    pub warmups: usize,
    pub launches: usize,
}

/// What a peer is asked to time.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "work", rename_all = "kebab-case")]
pub(super) enum Work {
    /// A product of two square matrices.
    Matmul { size: usize },
    /// Attention, full or causal.
    Attention {
        #[serde(flatten)]
        dims: Dims,
        causal: bool,
        pass: Pass,
    },
    /// Attention, causal within each document.
    CausalDocument {
        #[serde(flatten)]
        dims: Dims,
        documents: Vec<usize>,
        pass: Pass,
    },
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(flatten)]
    work: &'a Work,
    #[serde(flatten)]
    launches: Launches,
    dtype: &'a str,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Answer {
    /// Who it is, with versions.
    pub name: String,
    /// Milliseconds of each launch.
    pub ms: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reply {
    Answer(Answer),
    Error { error: String },
}

/// All peers; each is started when it is first asked.
pub(super) struct Peers {
    python: String,
    dtype: &'static str,
    sdpa: Option<Peer>,
    flex: Option<Peer>,
}

/// One program.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The program's file; it reads itself again to compile.
    _script: tempfile::NamedTempFile,
}

impl Work {
    /// What a rival is asked for beside our case; none when it is ourselves.
    ///
    /// # Errors
    /// When no documents of this length are known.
    pub(super) fn of(rival: Rival, dims: Dims, pass: Pass) -> anyhow::Result<Option<Self>> {
        Ok(match rival {
            Rival::Cudnn { causal } => Some(Work::Attention { dims, causal, pass }),
            Rival::Flex => {
                let documents = documents(dims.seq_k).context("no documents of this length")?;
                Some(Work::CausalDocument { dims, documents, pass })
            }
            Rival::AnyOrder | Rival::WholeHeads => None,
        })
    }
}

impl Peers {
    /// By this Python, which has PyTorch; in this element type.
    pub(super) const fn new(python: String, dtype: &'static str) -> Self {
        Self { python, dtype, sdpa: None, flex: None }
    }

    /// Has something timed.
    ///
    /// # Errors
    /// When the program does not start, ends, or cannot do it.
    pub(super) fn time(&mut self, work: &Work, launches: Launches) -> anyhow::Result<Answer> {
        let (peer, script) = match work {
            Work::CausalDocument { .. } => (&mut self.flex, FLEX),
            Work::Matmul { .. } | Work::Attention { .. } => (&mut self.sdpa, SDPA),
        };
        let peer = match peer {
            Some(peer) => peer,
            None => peer.insert(Peer::start(&self.python, script)?),
        };
        peer.ask(&serde_json::to_string(&Request { work, launches, dtype: self.dtype })?)
    }
}

impl Peer {
    fn start(python: &str, script: &str) -> anyhow::Result<Self> {
        let mut file = tempfile::Builder::new().suffix(".py").tempfile()?;
        file.write_all(script.as_bytes())?;
        let mut command = Command::new(python);
        command.arg(file.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {python}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{python} has no pipes");
        };
        Ok(Self { child, input, output: BufReader::new(output), _script: file })
    }

    fn ask(&mut self, request: &str) -> anyhow::Result<Answer> {
        writeln!(self.input, "{request}").context("the peer has ended")?;
        self.input.flush()?;
        let mut line = String::new();
        // Libraries print what they like; an answer is an object.
        while !line.starts_with('{') {
            line.clear();
            if self.output.read_line(&mut line)? == 0 {
                bail!("the peer ended without an answer");
            }
        }
        match serde_json::from_str(&line).with_context(|| format!("the peer answered {line}"))? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Error { error } => bail!("{error}"),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_python() -> bool {
        crate::shell::works("python3", &["--version"])
    }

    #[test]
    fn a_peer_answers_line_by_line() {
        if !has_python() {
            return;
        }
        let script =
            "import sys\nfor line in sys.stdin:\n    print('noise')\n    print(line.strip(), flush=True)\n";
        let mut peer = Peer::start("python3", script).unwrap();
        for ms in [1.0, 2.0] {
            let answer = peer.ask(&format!("{{\"name\": \"echo\", \"ms\": [{ms}]}}")).unwrap();
            assert_eq!(answer, Answer { name: "echo".to_owned(), ms: vec![ms] });
        }
        let error = peer.ask("{\"error\": \"no such kernel\"}").unwrap_err();
        assert_eq!(error.to_string(), "no such kernel");
    }

    #[test]
    fn a_peer_that_ends_is_an_error() {
        if has_python() {
            assert!(Peer::start("python3", "raise SystemExit(1)\n").unwrap().ask("{}").is_err());
        }
        assert!(Peer::start("no-such-program", "").is_err());
    }

    #[test]
    fn requests_are_flat() {
        let dims = Dims { batch: 1, heads_q: 16, heads_kv: 16, seq_q: 32768, seq_k: 32768, head_dim: 128 };
        let work = Work::of(Rival::Flex, dims, Pass::Backward).unwrap().unwrap();
        let launches = Launches { warmups: 3, launches: 9 };
        let json = serde_json::to_value(Request { work: &work, launches, dtype: "bf16" }).unwrap();
        assert_eq!(
            (&json["work"], &json["seq_k"], &json["launches"], &json["pass"]),
            (&"causal-document".into(), &32768.into(), &9.into(), &"backward".into())
        );
        assert_eq!(json["documents"].as_array().unwrap().len(), 16);
    }
}
