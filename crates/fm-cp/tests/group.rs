//! Groups as users hold them: layouts, changing masks and shapes, several groups, disagreement, recovery.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod support;

use std::time::Duration;

use fm_cp::host::{self, HostConfig, HostFabric};
use fm_cp::view::{Extents, Strides};
use fm_cp::{
    BackwardInputs, Bytes, Config, CpAttention, CpGroup, Error, ForwardInputs, ForwardOutputs, Gradients,
    Options, PassKind, Prepared, ShardingKind, View4, View4Mut, World, tensors,
};
use support::{Case, Tensors};
use tensors::{SeqAxis, scatter};

const CASE: Case = Case {
    ranks: 3,
    kind: ShardingKind::DualChunk,
    seq: 400,
    batch: 2,
    heads_q: 4,
    heads_kv: 2,
    head_dim: 16,
    seed: 11,
};

/// O, LSE, dQ, dK, dV of one rank, dense [b, s, h, d].
type Local = (Vec<f32>, Vec<f32>, [Vec<f32>; 3]);

fn local(case: &Case, rank: usize) -> Tensors<f32> {
    let (all, sharding) = (case.tensors::<f32>(), case.sharding());
    let cut = |data: &[f32], heads: usize| {
        let axis = SeqAxis { outer: case.batch, inner: heads * case.head_dim };
        scatter(&sharding, axis, data).unwrap().swap_remove(rank)
    };
    Tensors {
        q: cut(&all.q, case.heads_q),
        k: cut(&all.k, case.heads_kv),
        v: cut(&all.v, case.heads_kv),
        dout: cut(&all.dout, case.heads_q),
    }
}

fn extents(case: &Case, prepared: &Prepared, heads: usize) -> Extents {
    let seq = prepared.plan().shape.dims().seq_q;
    Extents { batch: case.batch, seq, heads, head_dim: case.head_dim }
}

/// Forward and backward of one rank on dense views.
fn both(group: &mut CpGroup, case: &Case, prepared: &Prepared) -> Result<Local, Error> {
    let t = local(case, group.rank().index());
    let (eq, ek) = (extents(case, prepared, case.heads_q), extents(case, prepared, case.heads_kv));
    let attention = CpAttention::new(Options::default())?;
    let qkv =
        ForwardInputs { q: View4::bshd(&t.q, eq)?, k: View4::bshd(&t.k, ek)?, v: View4::bshd(&t.v, ek)? };
    let (mut o, mut lse) = (t.q.clone(), vec![0.0; eq.batch * eq.heads * eq.seq]);
    attention.forward(
        group,
        prepared,
        qkv,
        ForwardOutputs { o: View4Mut::bshd(&mut o, eq)?, lse: &mut lse },
    )?;
    let mut grads = [t.q.clone(), t.k.clone(), t.v.clone()];
    let [dq, dk, dv] = &mut grads;
    let views =
        Gradients { dq: View4Mut::bshd(dq, eq)?, dk: View4Mut::bshd(dk, ek)?, dv: View4Mut::bshd(dv, ek)? };
    let inputs = BackwardInputs { qkv, o: View4::bshd(&o, eq)?, lse: &lse, dout: View4::bshd(&t.dout, eq)? };
    attention.backward(group, prepared, inputs, views)?;
    Ok((o, lse, grads))
}

fn join(fabric: HostFabric) -> CpGroup {
    CpGroup::join(fabric, Config::default()).unwrap()
}

/// [b, s, h, d] rows moved into other strides, with NaN between them.
fn restride(dense: &[f32], e: Extents, strides: Strides, len: usize) -> Vec<f32> {
    let from = View4::bshd(dense, e).unwrap();
    let mut data = vec![f32::NAN; len];
    let mut to = View4Mut::strided(&mut data, e, strides).unwrap();
    for batch in 0..e.batch {
        for seq in 0..e.seq {
            for head in 0..e.heads {
                let at = fm_cp::view::At { batch, seq, head };
                to.row_mut(at).copy_from_slice(from.row(at));
            }
        }
    }
    data
}

#[test]
fn layouts_give_the_same_bits() {
    let mask = CASE.mask("share-question");
    host::run(World::new(CASE.ranks).unwrap(), HostConfig::default(), |fabric| {
        let mut group = join(fabric);
        let prepared = group.prepare(&mask, CASE.shape::<f32>(), &CASE.sharding()).unwrap();
        let (dense, ..) = both(&mut group, &CASE, &prepared).unwrap();
        let t = local(&CASE, group.rank().index());
        let (eq, ek) = (extents(&CASE, &prepared, CASE.heads_q), extents(&CASE, &prepared, CASE.heads_kv));
        // [b, h, s, d], and K, V as slices of one packed tensor [b, s, hkv, 2, d].
        let (heads, row) = (2 * ek.head_dim, 2 * ek.heads * ek.head_dim);
        let packed = Strides { batch: ek.seq * row, seq: row, heads };
        for keys in [Strides::bhsd(ek), packed] {
            let len = 2 * t.k.len();
            let q = restride(&t.q, eq, Strides::bhsd(eq), t.q.len());
            let (k, v) = (restride(&t.k, ek, keys, len), restride(&t.v, ek, keys, len));
            let inputs = ForwardInputs {
                q: View4::bhsd(&q, eq).unwrap(),
                k: View4::strided(&k, ek, keys).unwrap(),
                v: View4::strided(&v, ek, keys).unwrap(),
            };
            let (mut o, mut lse) = (vec![0.0; t.q.len()], vec![0.0; eq.batch * eq.heads * eq.seq]);
            let outputs = ForwardOutputs { o: View4Mut::bhsd(&mut o, eq).unwrap(), lse: &mut lse };
            let attention = CpAttention::new(Options::default()).unwrap();
            attention.forward(&mut group, &prepared, inputs, outputs).unwrap();
            assert_eq!(o, restride(&dense, eq, Strides::bhsd(eq), dense.len()));
        }
        group.close().unwrap();
    });
}

#[test]
fn masks_and_shapes_may_change_between_calls() {
    let larger = Case { seq: 700, heads_q: 6, heads_kv: 3, head_dim: 24, ..CASE };
    let names = ["causal", "document", "full", "qk-sparse", "random-eviction", "causal"];
    let run = |rounds: &[(Case, &str)]| {
        host::run(World::new(CASE.ranks).unwrap(), HostConfig::default(), |fabric| {
            let mut group = join(fabric);
            let round = |(case, name): &(Case, &str)| {
                let prepared =
                    group.prepare(&case.mask(name), case.shape::<f32>(), &case.sharding()).unwrap();
                both(&mut group, case, &prepared).unwrap()
            };
            let results: Vec<Local> = rounds.iter().map(round).collect();
            group.close().unwrap();
            results
        })
    };
    let rounds: Vec<(Case, &str)> =
        names.iter().flat_map(|name| [(CASE, *name), (larger, *name), (CASE, *name)]).collect();
    let together = run(&rounds);
    for (index, round) in rounds.iter().enumerate() {
        let alone = run(&[*round]);
        for (rank, alone) in alone.iter().enumerate() {
            assert!(together[rank][index] == alone[0], "rank {rank}, round {index} ({})", round.1);
        }
    }
}

#[test]
fn two_groups_of_one_process_do_not_disturb_each_other() {
    let world = World::new(CASE.ranks).unwrap();
    let (first, second) = (CASE.mask("causal"), CASE.mask("document"));
    let others: std::sync::Mutex<Vec<Option<HostFabric>>> =
        host::HostWorld::new(world, HostConfig::default())
            .unwrap()
            .into_iter()
            .map(Some)
            .collect::<Vec<_>>()
            .into();
    let results = host::run(world, HostConfig::default(), |fabric| {
        let rank = fm_cp::Pe::index(symm_buffer::Fabric::me(&fabric));
        let other = others.lock().unwrap()[rank].take().unwrap();
        let (mut a, mut b) = (join(fabric), join(other));
        let of_a = a.prepare(&first, CASE.shape::<f32>(), &CASE.sharding()).unwrap();
        let of_b = b.prepare(&second, CASE.shape::<f32>(), &CASE.sharding()).unwrap();
        let rounds = [(); 3].map(|()| {
            let from_a = both(&mut a, &CASE, &of_a).unwrap();
            (from_a, both(&mut b, &CASE, &of_b).unwrap())
        });
        assert!(rounds[0] == rounds[1] && rounds[1] == rounds[2]);
        a.close().unwrap();
        b.close().unwrap();
        rounds[0].0.0 != rounds[0].1.0
    });
    assert!(results.into_iter().all(|differ| differ));
}

#[test]
fn different_settings_are_refused_by_name() {
    let results = host::run(World::new(3).unwrap(), HostConfig::default(), |fabric| {
        let slow = symm_buffer::Fabric::me(&fabric).0 == 1;
        let deadline = Duration::from_secs(if slow { 20 } else { 10 });
        CpGroup::join(fabric, Config { deadline, ..Config::default() }).map(drop)
    });
    for result in results {
        let text = result.unwrap_err().to_string();
        assert!(text.contains("deadline_ms") && text.contains("10000") && text.contains("20000"), "{text}");
    }
}

#[test]
fn different_plans_are_refused_by_name_and_the_group_recovers() {
    let config = Config { deadline: Duration::from_secs(5), ..Config::default() };
    let results = host::run(World::new(CASE.ranks).unwrap(), HostConfig::default(), |fabric| {
        let mut group = CpGroup::join(fabric, config.clone()).unwrap();
        let odd_one = group.rank().0 == 2;
        let shape = CASE.shape::<f32>();
        let name = if odd_one { "document" } else { "causal" };
        let prepared = group.prepare(&CASE.mask(name), shape, &CASE.sharding()).unwrap();
        let error = both(&mut group, &CASE, &prepared).unwrap_err();
        assert!(group.status().is_err(), "the failure stays until recover()");
        group.recover().unwrap();
        let prepared = group.prepare(&CASE.mask("causal"), shape, &CASE.sharding()).unwrap();
        both(&mut group, &CASE, &prepared).unwrap();
        group.close().unwrap();
        error
    });
    for (rank, error) in results.iter().enumerate() {
        let text = error.to_string();
        assert!(text.contains("'mask' differs") && text.contains("rank 2"), "rank {rank}: {text}");
    }
}

#[test]
fn a_rank_that_returns_early_is_named_by_all_others() {
    let config = Config { deadline: Duration::from_millis(300), ..Config::default() };
    let results = host::run(World::new(3).unwrap(), HostConfig::default(), |fabric| {
        let mut group = CpGroup::join(fabric, config.clone()).unwrap();
        let prepared = group.prepare(&CASE.mask("full"), CASE.shape::<f32>(), &CASE.sharding()).unwrap();
        (group.rank().0 != 1).then(|| both(&mut group, &CASE, &prepared).unwrap_err().to_string())
    });
    for text in results.into_iter().flatten() {
        assert!(text.contains("rank 1"), "{text}");
    }
}

#[test]
fn symmetric_memory_is_stated_and_bounded() {
    let mask = CASE.mask("causal");
    let stated = host::run(World::new(CASE.ranks).unwrap(), HostConfig::default(), |fabric| {
        let mut group = join(fabric);
        let prepared = group.prepare(&mask, CASE.shape::<f32>(), &CASE.sharding()).unwrap();
        both(&mut group, &CASE, &prepared).unwrap();
        [PassKind::Forward, PassKind::Backward].map(|pass| prepared.symmetric_bytes(pass))
    });
    let [forward, backward] = stated[0];
    assert!(stated.iter().all(|bytes| *bytes == stated[0]) && Bytes(0) < forward && forward < backward);
    for bound in [backward, Bytes(backward.0 - 1), Bytes(forward.0 - 1)] {
        let config = Config { symmetric_bytes: Some(bound), ..Config::default() };
        host::run(World::new(CASE.ranks).unwrap(), HostConfig::default(), |fabric| {
            let mut group = CpGroup::join(fabric, config.clone()).unwrap();
            let prepared = group.prepare(&mask, CASE.shape::<f32>(), &CASE.sharding()).unwrap();
            let result = both(&mut group, &CASE, &prepared);
            if bound == backward {
                return drop(result.unwrap());
            }
            // Of the forward as soon as it is too much, else of the backward.
            let needed = if bound < forward { forward } else { backward };
            let text = result.unwrap_err().to_string();
            assert!(text.contains(&format!("needs {} bytes", needed.0)), "{text}");
            assert!(text.contains(&format!("{} are allowed", bound.0)), "{text}");
            group.status().unwrap();
        });
    }
}

#[test]
fn wrong_tensors_are_refused_before_anything_is_sent() {
    host::run(World::new(1).unwrap(), HostConfig::default(), |fabric| {
        let case = Case { ranks: 1, ..CASE };
        let mut group = join(fabric);
        let prepared = group.prepare(&case.mask("full"), case.shape::<f32>(), &case.sharding()).unwrap();
        let error = both(&mut group, &Case { heads_q: 2, ..case }, &prepared).unwrap_err().to_string();
        assert!(error.contains("q is [2, 400, 2, 16]") && error.contains("[2, 400, 4, 16]"), "{error}");
        let two = Case { ranks: 2, ..case };
        let error = group.prepare(&two.mask("full"), two.shape::<f32>(), &two.sharding()).unwrap_err();
        assert!(error.to_string().contains("of 2") && error.to_string().contains("of 1"), "{error}");
        assert!(CpAttention::new(Options { scale: Some(f32::NAN) }).unwrap_err().to_string().contains("NaN"));
    });
}
