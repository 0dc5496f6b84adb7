//! Compares a run with the f64 reference: all rows and columns, or a random sample of them (chosen by the seed).
use fm_cp::whole::{WholeGradients, WholeInputs, WholeOutputs};
use fm3_kernels::reference::{Attention, HeadAt, Saved};
use fm3_kernels::view::{At, Extents};
use fm3_kernels::{Element, FlashMask, Shape, View4};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::json::Checked;

/// What was run, and what came out.
pub(crate) struct Run<'a, T> {
    pub shape: Shape,
    pub mask: &'a FlashMask,
    pub inputs: WholeInputs<'a, T>,
    pub outputs: &'a WholeOutputs<T>,
    pub gradients: &'a WholeGradients<T>,
    pub seed: u64,
}

/// Errors of all outputs; ||x - ref|| / ||ref||, and for LSE the largest absolute difference.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Errors {
    pub o: f64,
    pub lse: f64,
    pub dq: f64,
    pub dk: f64,
    pub dv: f64,
}

/// Sums of squares as rows come in.
#[derive(Clone, Copy, Debug, Default)]
struct Distance {
    difference: f64,
    reference: f64,
    elements: usize,
}

impl Distance {
    fn add<T: Element>(&mut self, got: &[T], want: &[f64]) {
        for (got, want) in got.iter().zip(want) {
            self.difference += (f64::from(got.to_f32()) - want).powi(2);
            self.reference += want * want;
        }
        self.elements += got.len();
    }

    /// NaN anywhere stays NaN. Where no row sees two keys, the true dQ and dK are zeros, in which equal terms cancel; f32
    /// leaves about 1e-7 of them. So against zeros the root mean square itself counts.
    fn relative(self) -> f64 {
        let to = if self.reference == 0.0 { self.elements.max(1) as f64 } else { self.reference };
        (self.difference / to).sqrt()
    }
}

/// Compares; `tick` is called as work is done, with the share of it.
pub(crate) fn compare<T: Element>(
    run: &Run<'_, T>,
    checked: Checked,
    tick: impl Fn(f64),
) -> Result<Errors, fm3_kernels::Error> {
    match checked {
        Checked::Complete => complete(run, tick),
        Checked::Sampled => sampled(run, tick),
    }
}

fn complete<T: Element>(run: &Run<'_, T>, tick: impl Fn(f64)) -> Result<Errors, fm3_kernels::Error> {
    let (attention, dout) = run.reference()?;
    let output = attention.forward();
    tick(0.3);
    let gradients = attention.backward(&output, &dout);
    tick(0.7);
    let distance = |got: &[T], want: &[f64]| {
        let mut distance = Distance::default();
        distance.add(got, want);
        distance.relative()
    };
    Ok(Errors {
        o: distance(&run.outputs.o, &output.o),
        lse: run
            .outputs
            .lse
            .iter()
            .zip(&output.lse)
            .map(|(got, want)| lse_error(*got, *want))
            .fold(0.0, worse),
        dq: distance(&run.gradients.dq, &gradients.dq),
        dk: distance(&run.gradients.dk, &gradients.dk),
        dv: distance(&run.gradients.dv, &gradients.dv),
    })
}

fn sampled<T: Element>(run: &Run<'_, T>, tick: impl Fn(f64)) -> Result<Errors, fm3_kernels::Error> {
    let (attention, dout) = run.reference()?;
    let dims = run.shape.dims();
    let mut random = ChaCha8Rng::seed_from_u64(run.seed ^ 0x5eed_c0de);
    let mut worst = Errors::default();
    let [mut o, mut dq, mut dk, mut dv] = [Distance::default(); 4];
    let share = 1.0 / (dims.batch * (dims.heads_q + dims.heads_kv)) as f64;
    for at in heads(dims.batch, dims.heads_q) {
        let rows = choose(&mut random, dims.seq_q);
        let results = attention.forward_rows(at, &rows);
        let gradients = attention.query_gradients(at, &rows, &dout);
        for ((row, result), gradient) in rows.iter().zip(&results).zip(&gradients) {
            let place = At { batch: at.batch, seq: *row, head: at.head };
            o.add(run.query(&run.outputs.o)?.row(place), &result.o);
            dq.add(run.query(&run.gradients.dq)?.row(place), gradient);
            let lse = run.outputs.lse[(at.batch * dims.heads_q + at.head) * dims.seq_q + row];
            worst.lse = worse(worst.lse, lse_error(lse, result.lse));
        }
        tick(share);
    }
    let saved = Saved { o: run.query(&run.outputs.o)?, lse: &run.outputs.lse, dout };
    for at in heads(dims.batch, dims.heads_kv) {
        let columns = choose(&mut random, dims.seq_k);
        for (column, want) in columns.iter().zip(attention.column_gradients(at, &columns, &saved)) {
            let place = At { batch: at.batch, seq: *column, head: at.head };
            dk.add(run.key(&run.gradients.dk)?.row(place), &want.dk);
            dv.add(run.key(&run.gradients.dv)?.row(place), &want.dv);
        }
        tick(share);
    }
    Ok(Errors { o: o.relative(), dq: dq.relative(), dk: dk.relative(), dv: dv.relative(), ..worst })
}

/// At most [`Checked::SAMPLES_PER_HEAD`] different indices below `len`.
fn choose(random: &mut ChaCha8Rng, len: usize) -> Vec<usize> {
    let wanted = Checked::SAMPLES_PER_HEAD.min(len);
    let mut chosen = std::collections::BTreeSet::new();
    while chosen.len() < wanted {
        chosen.insert(usize::try_from(random.next_u64() % len as u64).unwrap_or(0));
    }
    chosen.into_iter().collect()
}

fn heads(batch: usize, heads: usize) -> impl Iterator<Item = HeadAt> {
    (0..batch).flat_map(move |batch| (0..heads).map(move |head| HeadAt { batch, head }))
}

/// Rows that see nothing must say so.
fn lse_error(got: f32, want: f64) -> f64 {
    let got = f64::from(got);
    if got == want { 0.0 } else { (got - want).abs() }
}

/// The larger one; NaN wins.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}

impl<'a, T: Element> Run<'a, T> {
    fn reference(&self) -> Result<(Attention<'a, T>, View4<'a, T>), fm3_kernels::Error> {
        let WholeInputs { q, k, v, dout } = self.inputs;
        let attention = Attention {
            shape: self.shape,
            mask: self.mask,
            scale: self.shape.default_scale(),
            q: self.query(q)?,
            k: self.key(k)?,
            v: self.key(v)?,
        };
        Ok((attention, self.query(dout.unwrap_or_default())?))
    }

    fn query<'d>(&self, data: &'d [T]) -> Result<View4<'d, T>, fm3_kernels::Error> {
        let dims = self.shape.dims();
        self.view(data, dims.seq_q, dims.heads_q)
    }

    fn key<'d>(&self, data: &'d [T]) -> Result<View4<'d, T>, fm3_kernels::Error> {
        let dims = self.shape.dims();
        self.view(data, dims.seq_k, dims.heads_kv)
    }

    fn view<'d>(&self, data: &'d [T], seq: usize, heads: usize) -> Result<View4<'d, T>, fm3_kernels::Error> {
        let dims = self.shape.dims();
        View4::bshd(data, Extents { batch: dims.batch, seq, heads, head_dim: dims.head_dim })
    }
}
