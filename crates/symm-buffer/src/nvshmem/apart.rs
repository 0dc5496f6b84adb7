//! NVSHMEM's own collectives. They have no deadline, and where a rank is gone they never return: so each runs on a thread of
//! its own, which is left when time is up or a peer is gone (rule D1). NVSHMEM is of no more use to the process then.
use std::time::{Duration, Instant};

use cudarc::driver::CudaContext;
use nvshmem_sys::Nvshmem;

use super::block::{Block, Hall};
use super::driver::Named;
use super::meeting::{Outcome, Round};
use super::place::Vigil;
use crate::ask::Ask;
use crate::deadline::{Deadline, poll_until};
use crate::sync::mpsc::{TryRecvError, sync_channel};
use crate::sync::{Arc, OnceLock, thread};
use crate::{Error, Pe};

/// A look at the other processes takes some system calls.
const SELDOM: Duration = Duration::from_millis(20);
/// A peer may end as soon as its part of a collective is done, while this rank is still at its own.
const LAST_MOMENT: Duration = Duration::from_secs(2);

/// The call that NVSHMEM did not come back from, and when it was left.
static LEFT: OnceLock<(&'static str, Instant)> = OnceLock::new();

/// What a rank needs to call NVSHMEM on a thread apart, and to leave it there.
#[derive(Debug)]
pub(super) struct Apart {
    pub(super) me: Pe,
    pub(super) nvshmem: Nvshmem,
    pub(super) context: Arc<CudaContext>,
    pub(super) vigil: Vigil,
}

/// Whether NVSHMEM can still be called in this process.
///
/// # Errors
/// [`Error::Stuck`].
pub(super) fn check(call: &'static str) -> Result<(), Error> {
    LEFT.get().map_or(Ok(()), |&(inside, since)| Err(Error::Stuck { call, inside, waited: since.elapsed() }))
}

impl Apart {
    /// Runs `work`, a collective of NVSHMEM's to which all ranks have come, with the device current.
    ///
    /// # Errors
    /// What `work` says; [`Error::Lost`] when a peer is gone, [`Error::Stuck`] when time is up, now or earlier.
    pub(super) fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        budget: Duration,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        check(call)?;
        let context = self.context.clone();
        let with_device = move || {
            context.bind_to_thread().named("cuCtxSetCurrent")?;
            work()
        };
        let began = Instant::now();
        on_a_thread((call, self.me), &self.vigil, Deadline::after(budget), with_device).unwrap_or_else(
            |left| {
                LEFT.get_or_init(|| {
                    self.nvshmem.abandon();
                    (call, began)
                });
                Err(left)
            },
        )
    }

    /// Meets all ranks in the block of the start.
    ///
    /// # Errors
    /// [`Error::Lost`], [`Error::Missing`].
    pub(super) fn meet(&self, call: &'static str, block: &Block, deadline: Deadline) -> Result<(), Error> {
        let round = Round::enter(block, Hall::Collective, self.me, Ask::Barrier, || ());
        let mut gone = gone(&self.vigil);
        let lost = || gone().map(|peer| Error::Lost { call, me: self.me, peer });
        match round.wait(deadline, lost)? {
            Outcome::Missing(missing) => {
                Err(Error::Missing { call, me: self.me, missing, waited: deadline.waited() })
            }
            _ => Ok(()),
        }
    }
}

/// Runs `work` on a thread of its own; the outer error says that the thread was left.
fn on_a_thread<T: Send + 'static>(
    (call, me): (&'static str, Pe),
    vigil: &Vigil,
    deadline: Deadline,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<Result<T, Error>, Error> {
    let (done, answer) = sync_channel(1);
    let started = thread::Builder::new().name("nvshmem".to_owned()).spawn(move || {
        // Whoever waited may have left.
        _ = done.send(work());
    });
    if let Err(error) = started {
        return Ok(Err(Error::Stream { call, stream: "nvshmem", reason: error.to_string() }));
    }
    let mut gone = gone(vigil);
    let mut since: Option<(Pe, Instant)> = None;
    let poll = || match answer.try_recv() {
        Ok(answer) => Some(Ok(answer)),
        // It panicked.
        Err(TryRecvError::Disconnected) => Some(Err(None)),
        Err(TryRecvError::Empty) => {
            since = since.or_else(|| gone().map(|peer| (peer, Instant::now())));
            since.filter(|(_, since)| since.elapsed() > LAST_MOMENT).map(|(peer, _)| Err(Some(peer)))
        }
    };
    let stuck = |waited| Error::Stuck { call, inside: call, waited };
    match poll_until(deadline, poll) {
        Ok(waited) => waited.value.map_err(|peer| match peer {
            Some(peer) => Error::Lost { call, me, peer },
            None => stuck(waited.time),
        }),
        Err(expired) => Err(stuck(expired.waited)),
    }
}

/// Looks now and then which peer is gone.
fn gone(vigil: &Vigil) -> impl FnMut() -> Option<Pe> {
    let mut looked: Option<Instant> = None;
    move || {
        if looked.is_some_and(|looked| looked.elapsed() < SELDOM) {
            return None;
        }
        looked = Some(Instant::now());
        vigil.dead().next()
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::Sizes;
    use super::super::place::{Place, join};
    use super::*;
    use crate::World;

    const LONG: Duration = Duration::from_secs(20);

    /// The locks of two ranks.
    fn vigils() -> [Vigil; 2] {
        let folder = tempfile::tempdir().unwrap();
        let sizes = Sizes { world: World::new(2).unwrap(), signals: 1 };
        let place = Place { folder: folder.path().to_owned(), name: "apart".to_owned() };
        thread::scope(|scope| {
            [0, 1]
                .map(|me| {
                    let place = &place;
                    scope.spawn(move || join(Pe(me), sizes, place, LONG).unwrap().1)
                })
                .map(|rank| rank.join().unwrap())
        })
    }

    fn run<T: Send + 'static>(
        vigil: &Vigil,
        budget: Duration,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<Result<T, Error>, Error> {
        on_a_thread(("test", Pe(0)), vigil, Deadline::after(budget), work)
    }

    #[test]
    fn answers_come_through_also_from_a_rank_whose_peer_is_done_and_gone() {
        let [mine, theirs] = vigils();
        assert_eq!(run(&mine, LONG, || Ok(5)), Ok(Ok(5)));
        let refused = || Err::<(), _>(Error::NoRanks { call: "test" });
        assert_eq!(run(&mine, LONG, refused), Ok(refused()));
        drop(theirs);
        let slow = || {
            thread::sleep(LAST_MOMENT / 4);
            Ok(7)
        };
        assert_eq!(run(&mine, LONG, slow), Ok(Ok(7)));
    }

    #[test]
    fn a_call_that_never_returns_is_left_when_a_peer_is_gone_or_time_is_up() {
        let [mine, theirs] = vigils();
        let never = || {
            thread::park();
            Ok(())
        };
        let error = run(&mine, Duration::from_millis(50), never).unwrap_err();
        assert!(matches!(error, Error::Stuck { call: "test", inside: "test", .. }), "{error}");
        drop(theirs);
        let began = Instant::now();
        let error = run(&mine, LONG, never).unwrap_err();
        assert_eq!(error, Error::Lost { call: "test", me: Pe(0), peer: Pe(1) });
        assert!(began.elapsed() < LONG / 2);
    }

    #[test]
    fn work_that_panics_is_not_waited_for() {
        let [mine, _theirs] = vigils();
        let error = run(&mine, LONG, || -> Result<(), Error> { panic!("the test wants it") }).unwrap_err();
        assert!(matches!(error, Error::Stuck { .. }), "{error}");
    }
}
