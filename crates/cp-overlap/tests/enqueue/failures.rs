//! Lost signals, ranks that differ, what is refused, and what comes after.
use std::time::{Duration, Instant};

use cp_overlap::exec::{CallSpec, PassKind, Settings, SourceTensor, Sources};
use cp_overlap::plan::RankPlan;
use cp_overlap::{Compute, Error, Readiness};
use fm3_kernels::view::Strides;
use symm_buffer::host::{Faults, HostConfig, Lost};
use symm_buffer::{Bytes, Error as Symm, Pe};

use super::problems::Recipe;
use super::world::{PLAIN, Rank, Spec, on_ranks, settings};

const BRIEF: Duration = Duration::from_millis(300);

fn is_timeout(error: &Error) -> bool {
    matches!(error, Error::Fabric(Symm::Timeout(_) | Symm::Aborted { .. }))
}

/// A wait of this rank expired, be it one of its streams or of its device.
fn is_own_timeout(error: &Error, me: u32) -> bool {
    match error {
        Error::Fabric(Symm::Timeout(report)) => report.rank == Pe(me),
        Error::Fabric(Symm::Aborted { by, report, .. }) => *by == Pe(me) && report.rank == Pe(me),
        _ => false,
    }
}

#[test]
fn a_lost_signal_ends_all_calls_by_the_deadline_and_the_group_recovers() {
    let spec = Spec::new(&PLAIN);
    // Rank 1 posts 3 head groups to each of 2 peers and then 2 frees. A free is missed two calls later.
    for nth in 0..8 {
        let faults = Faults { lost: Some(Lost { rank: Some(Pe(1)), nth }), ..Faults::default() };
        let host = HostConfig { faults, ..HostConfig::default() };
        let short = Settings { deadline: BRIEF, ..settings() };
        let timeouts = on_ranks(3, (host, short), |rank| {
            let start = Instant::now();
            let results = rank.calls(&vec![spec.clone(); 4]);
            assert!(start.elapsed() < Duration::from_secs(10), "{nth} took {:?}", start.elapsed());
            let errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
            assert!(!errors.is_empty(), "signal {nth} went unnoticed by rank {}", rank.me());
            for error in &errors {
                // Who waits for one that waits for rank 1 may be the first whose time is up.
                assert!(is_timeout(error) && error.to_string().contains("waited"), "{nth}: {error}");
            }
            // It stays until all recover.
            assert!(rank.calls(std::slice::from_ref(&spec)).iter().all(Result::is_err));
            rank.session.set(settings());
            rank.recover();
            rank.good(&vec![spec.clone(); 3]);
            errors.iter().filter(|error| is_own_timeout(error, rank.me())).count()
        });
        assert!(timeouts.iter().sum::<usize>() >= 1, "{nth}: nobody says what it waited for");
    }
}

#[test]
fn ranks_that_differ_are_named_on_every_rank() {
    let spec = Spec::new(&PLAIN);
    let mask = Spec::new(&Recipe { mask: 1, ..PLAIN });
    let shape = Spec::new(&Recipe { rows: 500, ..PLAIN });
    let options = Spec { options: 4, ..spec.clone() };
    // Needs more memory than there is: found before the collective that would make room.
    let larger = Spec::new(&Recipe { rows: 900, ..PLAIN });
    for (other, field) in [(&mask, "mask"), (&shape, "shape"), (&options, "options"), (&larger, "shape")] {
        for before in [0, 2] {
            on_ranks(3, (HostConfig::default(), settings()), |rank| {
                rank.good(&vec![spec.clone(); before]);
                // Of a call that is not waited for before a failure nobody can say whether it was good.
                rank.meet();
                let mine = if rank.me() == 1 { other } else { &spec };
                let results = rank.calls(&[spec.clone(), mine.clone(), spec.clone()]);
                let last = results.into_iter().filter_map(Result::err).last().unwrap();
                let Error::PlanMismatch { rank: one, peer, field: found } = last else { panic!("{last}") };
                assert_eq!(found, field);
                assert!([one, peer].contains(&Pe(1)), "{one} and {peer}");
                rank.recover();
                rank.good(&vec![spec.clone(); 2]);
            });
        }
    }
}

#[test]
fn a_launch_that_is_refused_ends_the_call_everywhere() {
    let spec = Spec::new(&PLAIN);
    let refused = Spec { refused: true, ..spec.clone() };
    on_ranks(3, (HostConfig::default(), settings()), |rank| {
        let mine = if rank.me() == 0 { &refused } else { &spec };
        let error = rank.calls(std::slice::from_ref(mine)).remove(0).unwrap_err();
        match rank.me() {
            0 => assert!(matches!(error, Error::Compute { .. }), "{error}"),
            _ => assert!(matches!(error, Error::Fabric(Symm::Aborted { by: Pe(0), .. })), "{error}"),
        }
        rank.recover();
        rank.good(&vec![spec.clone(); 2]);
    });
}

#[test]
fn a_bound_on_memory_is_kept_before_anything_is_allocated() {
    let (small, large) = (Spec::new(&PLAIN), Spec::new(&Recipe { rows: 800, ..PLAIN }));
    let Bytes(fits) = small.plan.ranks[0].memory.forward();
    let settings = Settings { symmetric_bytes: Some(Bytes(fits)), ..settings() };
    on_ranks(3, (HostConfig::default(), settings), |rank| {
        let error = rank.calls(std::slice::from_ref(&large)).remove(0).unwrap_err();
        let needed = large.plan.ranks[0].memory.forward().0;
        assert!(
            matches!(error, Error::SymmetricMemory { needed: n, bound, .. } if (n, bound) == (needed, fits)),
            "{error}"
        );
        // Nobody has failed: the next call needs no recovery.
        rank.good(std::slice::from_ref(&small));
    });
}

/// Does nothing.
struct Nothing;

impl Compute for Nothing {
    fn forward(&mut self, _: &RankPlan, _: &mut dyn Readiness) -> Result<(), Error> {
        Ok(())
    }

    fn backward(&mut self, _: &RankPlan, _: &mut dyn Readiness) -> Result<(), Error> {
        Ok(())
    }
}

fn run(rank: &mut Rank, spec: &Spec) -> Result<(), Error> {
    let plan = &spec.plan.ranks[rank.me() as usize];
    let dims = plan.shape.dims();
    let row = dims.heads_kv * dims.head_dim;
    let strides = Strides { batch: dims.seq_q * row, seq: row, heads: dims.head_dim };
    let memory = vec![0; dims.batch * dims.seq_q * row * 2];
    let tensor = SourceTensor { memory: memory.as_slice(), strides };
    let call = CallSpec { pass: PassKind::Forward, plan, options: 0 };
    rank.session.run(call, Sources { k: tensor, v: tensor }, &mut Nothing).map(drop)
}

#[test]
fn kinds_of_calls_are_not_mixed() {
    let spec = Spec::new(&PLAIN);
    on_ranks(3, (HostConfig::default(), settings()), |rank| {
        rank.good(std::slice::from_ref(&spec));
        assert!(matches!(run(rank, &spec), Err(Error::MixedCalls { call: "run", .. })));
        rank.recover();
        run(rank, &spec).unwrap();
        let refused = rank.calls(std::slice::from_ref(&spec)).remove(0);
        assert!(matches!(refused, Err(Error::MixedCalls { call: "enqueue", .. })));
    });
}
