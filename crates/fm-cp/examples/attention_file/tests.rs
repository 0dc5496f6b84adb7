//! Files in, files out, and files that are wrong.
use std::path::{Path, PathBuf};

use clap::Parser;
use fm_cp::mask::{Columns, MaskDims};
use fm_cp::view::Extents;
use fm_cp::{FlashMask, View4};
use fm3_kernels::reference::Attention;
use fm3_kernels::{Dims, Shape};
use safetensors::tensor::{Dtype, SafeTensors};

use crate::Args;
use crate::files::{Output, write};
use crate::run::execute;

const QUERY: [usize; 4] = [2, 37, 4, 16];
const KEY: [usize; 4] = [2, 37, 2, 16];

/// Values that look random and are the same everywhere.
fn noise(len: usize, seed: u32) -> Vec<f32> {
    let step = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    let states = std::iter::successors(Some(seed), step).skip(1);
    states.map(|state| (state >> 8) as f32 / 8_388_608.0 - 1.0).take(len).collect()
}

struct Files {
    _folder: tempfile::TempDir,
    input: PathBuf,
    output: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in.safetensors"), folder.path().join("out.safetensors"));
        Self { _folder: folder, input, output }
    }

    fn run(&self, flags: &[&str]) -> anyhow::Result<String> {
        let paths = [self.input.to_str().unwrap(), self.output.to_str().unwrap()];
        execute(&Args::try_parse_from(["attention_file"].iter().chain(&paths).chain(flags))?)
    }

    /// The refusal, after which nothing may be left behind.
    fn refused(&self, flags: &[&str]) -> String {
        let error = format!("{:#}", self.run(flags).unwrap_err());
        assert!(!self.output.exists(), "an output was written in spite of: {error}");
        error
    }
}

fn problem(mask: Option<(&[usize], &[i32])>) -> Vec<Output> {
    let (queries, keys) = (QUERY.iter().product(), KEY.iter().product());
    let mut tensors = vec![
        Output::new("q", Dtype::F32, &QUERY, &noise(queries, 1)),
        Output::new("k", Dtype::F32, &KEY, &noise(keys, 2)),
        Output::new("v", Dtype::F32, &KEY, &noise(keys, 3)),
        Output::new("dout", Dtype::F32, &QUERY, &noise(queries, 4)),
    ];
    tensors.extend(mask.map(|(shape, data)| Output::new("startend_row_indices", Dtype::I32, shape, data)));
    tensors
}

fn read(path: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytemuck::pod_collect_to_vec(SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().data())
}

#[track_caller]
fn near(got: &[f32], want: &[f64], name: &str) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (got, want) in got.iter().zip(want) {
        let error = (f64::from(*got) - want).abs();
        assert!(
            f64::from(*got) == *want || error <= 1e-5 * (1.0 + want.abs()),
            "{name}: {got} is not {want}"
        );
    }
}

#[test]
fn outputs_are_those_of_the_reference() {
    let [batch, seq, heads_q, head_dim] = QUERY;
    let heads_kv = KEY[2];
    // Two mask heads of two columns: each key is hidden from some rows, row 36 sees nothing in head 0.
    let bounds: Vec<i32> = (0..batch * 2 * seq)
        .flat_map(|at| {
            let (head, column) = (at / seq % 2, i32::try_from(at % seq).unwrap());
            if head == 0 { [36, column / 2] } else { [column % 30 + 5, 2] }
        })
        .collect();
    let files = Files::new();
    write(&files.input, &problem(Some((&[batch, 2, seq, 2], &bounds)))).unwrap();
    let dims = MaskDims { batch, heads: 2, seq_q: seq, seq_k: seq };
    let mask = FlashMask::new(dims, Columns::Two, false, bounds).unwrap();
    let shape = Shape::new(Dims { batch, heads_q, heads_kv, seq_q: seq, seq_k: seq, head_dim }).unwrap();
    let data: Vec<Vec<f32>> = ["q", "k", "v", "dout"].iter().map(|name| read(&files.input, name)).collect();
    let extents = |heads| Extents { batch, seq, heads, head_dim };
    let attention = Attention {
        shape,
        mask: &mask,
        scale: 0.3,
        q: View4::bshd(&data[0], extents(heads_q)).unwrap(),
        k: View4::bshd(&data[1], extents(heads_kv)).unwrap(),
        v: View4::bshd(&data[2], extents(heads_kv)).unwrap(),
    };
    let output = attention.forward();
    let gradients = attention.backward(&output, &View4::bshd(&data[3], extents(heads_q)).unwrap());
    for flags in [&["--ranks", "1"], &["--ranks", "3"]] {
        let line = files.run(&[flags.as_slice(), &["--scale", "0.3"]].concat()).unwrap();
        assert!(line.contains("2 x 37 x 4/2 x 16 f32"), "{line}");
        near(&read(&files.output, "o"), &output.o, "o");
        near(&read(&files.output, "lse"), &output.lse, "lse");
        near(&read(&files.output, "dq"), &gradients.dq, "dq");
        near(&read(&files.output, "dk"), &gradients.dk, "dk");
        near(&read(&files.output, "dv"), &gradients.dv, "dv");
    }
}

#[test]
fn wrong_files_are_refused_and_leave_nothing() {
    let files = Files::new();
    assert!(files.refused(&[]).contains("cannot read"));
    write(&files.input, &problem(None)).unwrap();
    let whole = std::fs::read(&files.input).unwrap();
    for len in [0, 7, 100, whole.len() - 1] {
        std::fs::write(&files.input, &whole[..len]).unwrap();
        assert!(files.refused(&[]).contains("not a complete safetensors file"), "{len} bytes");
    }
    std::fs::write(&files.input, &whole).unwrap();
    assert!(files.refused(&["--ranks", "0"]).contains("0 ranks"));
    assert!(files.refused(&["--ranks", "38"]).contains("38"));
    assert!(files.refused(&["--scale", "NaN"]).contains("NaN"));
    assert!(files.refused(&["--sharding", "round"]).contains("dual-chunk"));
    assert!(files.refused(&["--backend", "tpu"]).contains("host"));
    // Gradients are asked for, which only the host has.
    assert!(files.refused(&["--backend", "cuda"]).contains("host"));
    let with = |mask: Option<(&[usize], &[i32])>| write(&files.input, &problem(mask)).unwrap();
    with(Some((&[2, 1, 37, 1], &[5; 74])));
    assert!(files.refused(&[]).contains("causal"), "C = 1 needs causal");
    with(Some((&[2, 1, 37, 4], &[5; 296])));
    assert!(files.refused(&["--causal", "true"]).contains("causal"), "C = 4 forbids causal");
    with(Some((&[2, 1, 36, 2], &[5; 144])));
    assert!(files.refused(&[]).contains("36"), "the mask is too short");
    with(Some((&[2, 3, 37, 2], &[5; 444])));
    assert!(files.refused(&[]).contains('3'), "3 mask heads do not divide 4");
    with(Some((&[2, 1, 37, 3], &[5; 222])));
    assert!(files.refused(&[]).contains('3'), "C = 3");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let files = Files::new();
    let mut tensors = problem(None);
    tensors.remove(2);
    write(&files.input, &tensors).unwrap();
    assert!(files.refused(&[]).contains("'v' is missing"));
    tensors.push(Output::new("v", Dtype::F32, &[2, 36, 2, 16], &noise(2 * 36 * 2 * 16, 3)));
    write(&files.input, &tensors).unwrap();
    let error = files.refused(&[]);
    assert!(error.contains("v is [2, 36, 2, 16]") && error.contains("[2, 37, 2, 16]"), "{error}");
    tensors.pop();
    tensors.push(Output::new("v", Dtype::BF16, &KEY, &vec![0u16; KEY.iter().product()]));
    write(&files.input, &tensors).unwrap();
    assert!(files.refused(&[]).contains("BF16"));
}
