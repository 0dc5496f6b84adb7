//! Attention as a framework without a fused kernel computes it: each step is a tensor in the problem's own type.
//!
//! Products accumulate in f32; S, S * scale, P, dP and dS are rounded to T. Its error is the yardstick of what T allows.
use fm3_kernels::reference::{Pair, visible};
use fm3_kernels::view::At;
use fm3_kernels::{Element, View4};

use super::{Case, Results, Tensors};

pub(crate) fn plain<T: Element>(case: &Case, tensors: &Tensors<T>) -> Results {
    let queries = case.queries();
    let zeros = |len| vec![0.0; len];
    let mut out = Results {
        o: zeros(tensors.q.len()),
        lse: zeros(queries.batch * queries.heads * queries.seq),
        dq: zeros(tensors.q.len()),
        dk: zeros(tensors.k.len()),
        dv: zeros(tensors.k.len()),
    };
    for batch in 0..queries.batch {
        for head in 0..queries.heads {
            one_head(case, tensors, [batch, head], &mut out);
        }
    }
    for tensor in [&mut out.dk, &mut out.dv] {
        #[expect(clippy::cast_possible_truncation, reason = "a sum of few rounded numbers, rounded again")]
        tensor.iter_mut().for_each(|value| *value = f64::from(round::<T>(*value as f32)));
    }
    out
}

fn one_head<T: Element>(case: &Case, tensors: &Tensors<T>, [batch, head]: [usize; 2], out: &mut Results) {
    let (queries, keys) = (case.queries(), case.keys());
    let (sq, sk, d) = (queries.seq, keys.seq, queries.head_dim);
    let kv = head / case.shape().group_size();
    let widen = |data: &[T], extents, head| -> Vec<f32> {
        let view = View4::bshd(data, extents).unwrap();
        let rows = (0..view.extents().seq).flat_map(|seq| view.row(At { batch, seq, head }).to_vec());
        rows.map(|value| value.to_f32()).collect()
    };
    let (q, dout) = (widen(&tensors.q, queries, head), widen(&tensors.dout, queries, head));
    let (k, v) = (widen(&tensors.k, keys, kv), widen(&tensors.v, keys, kv));
    let (mut dk, mut dv) = (vec![0.0; sk * d], vec![0.0; sk * d]);
    for row in 0..sq {
        let sees = |column| visible(&case.mask, queries.heads, Pair { batch, head, row, column });
        let columns: Vec<usize> = (0..sk).filter(|column| sees(*column)).collect();
        let of = |tensor: &'_ [f32], row: usize| tensor[row * d..][..d].to_vec();
        let (q, dout) = (of(&q, row), of(&dout, row));
        let score = |j: &usize| round::<T>(round::<T>(dot(&q, &k[j * d..][..d])) * case.scale);
        let scores: Vec<f32> = columns.iter().map(score).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = scores.iter().map(|score| (score - max).exp()).sum();
        out.lse[(batch * queries.heads + head) * sq + row] = f64::from(max + sum.ln());
        let p: Vec<f32> = scores.iter().map(|score| round::<T>((score - max).exp() / sum)).collect();
        let (mut o, mut dq) = (vec![0.0; d], vec![0.0; d]);
        for (j, p) in columns.iter().zip(&p) {
            add_scaled(&mut o, *p, &v[j * d..][..d]);
            add_scaled(&mut dv[j * d..][..d], *p, &dout);
        }
        o.iter_mut().for_each(|value| *value = round::<T>(*value));
        let delta = dot(&o, &dout);
        for (j, p) in columns.iter().zip(&p) {
            let ds = round::<T>(p * (round::<T>(dot(&dout, &v[j * d..][..d])) - delta));
            add_scaled(&mut dq, ds, &k[j * d..][..d]);
            add_scaled(&mut dk[j * d..][..d], ds, &q);
        }
        let place = ((batch * sq + row) * queries.heads + head) * d;
        for c in 0..d {
            out.o[place + c] = f64::from(o[c]);
            out.dq[place + c] = f64::from(round::<T>(dq[c] * case.scale));
        }
    }
    for column in 0..sk {
        let place = ((batch * sk + column) * keys.heads + kv) * d;
        for c in 0..d {
            out.dk[place + c] += f64::from(round::<T>(dk[column * d + c] * case.scale));
            out.dv[place + c] += f64::from(round::<T>(dv[column * d + c]));
        }
    }
}

fn add_scaled(sum: &mut [f32], factor: f32, row: &[f32]) {
    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
}

fn round<T: Element>(value: f32) -> f32 {
    T::from_f32(value).to_f32()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
