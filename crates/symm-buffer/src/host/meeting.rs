//! Collectives: all ranks meet, see whether they want the same, and one of them does it for all.
use super::{heap::Block, shared::Shared};
use crate::{
    Bytes, Error, Label, Pe, RegionId, Report, Span,
    ask::Ask,
    deadline::{Deadline, Expired, wait_until},
    sync::Mutex,
};

/// What a rank brings.
pub(super) struct Ballot {
    pub(super) ask: Ask,
    /// Its memory, for `alloc`.
    pub(super) block: Option<Block>,
}

/// Why a meeting came to nothing; the same for all who were there.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    Differ(Vec<Ask>),
    Missing(Pe),
    NoMemory(Pe),
    Busy(&'static str),
    Unknown,
    Full(Error),
}

/// A number with a meaning that depends on the call: a region, a signal, an incarnation.
pub(super) type Outcome = Result<u64, Refusal>;

/// A place to meet, round after round.
pub(super) struct Meeting {
    round: Mutex<Round>,
}

struct Round {
    /// Who is there, by rank.
    ballots: Vec<Option<Ballot>>,
    /// By rank, what became of the round that it was in, until it has looked. One for each: the next round may end, by
    /// a deadline, before the slowest rank of this one has looked.
    outcomes: Vec<Option<Outcome>>,
}

impl Round {
    fn is_absent(&self, pe: Pe) -> bool {
        self.ballots[pe.index()].is_none()
    }

    /// The first rank that went and can never come: others may have gone because of it.
    fn gone(&self, shared: &Shared) -> Option<Pe> {
        let absent = shared.world.ranks().filter(|pe| self.is_absent(*pe));
        absent.filter_map(|pe| Some((shared.rank(pe).left()?, pe))).min().map(|(_, pe)| pe)
    }

    /// Ends it for all who are there.
    fn end(&mut self, outcome: &Outcome) {
        for (ballot, its) in self.ballots.iter_mut().zip(&mut self.outcomes) {
            if ballot.take().is_some() {
                *its = Some(outcome.clone());
            }
        }
    }
}

impl Meeting {
    pub(super) fn new(ranks: usize) -> Self {
        let ballots = (0..ranks).map(|_| None).collect();
        Self { round: Mutex::new(Round { ballots, outcomes: vec![None; ranks] }) }
    }

    /// Meets everybody. The last to come does `act`, whose outcome all get.
    ///
    /// When a rank does not come, all who wait here learn which; then the group is aborted, so that the others learn it.
    pub(super) fn meet(
        &self,
        shared: &Shared,
        me: Pe,
        ballot: Ballot,
        deadline: Deadline,
        act: impl FnOnce(Vec<Ballot>) -> Outcome,
    ) -> Result<u64, Error> {
        let ask = ballot.ask;
        self.enter(shared, me, ballot, act);
        // Recovery is for groups that were aborted.
        let obeys_abort = ask != Ask::Recover;
        let poll = || {
            let mut round = self.round.lock();
            if let Some(outcome) = round.outcomes[me.index()].take() {
                return Some(Ok(outcome));
            }
            if obeys_abort && let Some(error) = shared.aborted(me) {
                round.ballots[me.index()] = None;
                return Some(Err(error));
            }
            let gone = round.gone(shared)?;
            round.end(&Err(Refusal::Missing(gone)));
            round.outcomes[me.index()].take().map(Ok)
        };
        let outcome = match wait_until(&shared.rank(me).event, deadline, poll) {
            Ok(waited) => waited.value?,
            Err(Expired { .. }) => self.give_up(shared, me),
        };
        outcome.map_err(|refusal| explain(shared, me, ask, refusal, deadline))
    }

    /// The mistake that a model must catch: the end of a round is told to all, also to those who were not in it.
    #[cfg(all(loom, test))]
    pub(super) fn end_for_all(&self, outcome: &Outcome) {
        self.round.lock().outcomes.fill(Some(outcome.clone()));
    }

    fn enter(&self, shared: &Shared, me: Pe, ballot: Ballot, act: impl FnOnce(Vec<Ballot>) -> Outcome) {
        let mut round = self.round.lock();
        round.ballots[me.index()] = Some(ballot);
        if round.ballots.iter().all(Option::is_some) {
            let ballots: Vec<Ballot> = round.ballots.iter_mut().filter_map(Option::take).collect();
            let asks: Vec<Ask> = ballots.iter().map(|ballot| ballot.ask).collect();
            let same = asks.iter().all(|ask| *ask == asks[0]);
            let outcome = if same { act(ballots) } else { Err(Refusal::Differ(asks)) };
            round.outcomes.fill(Some(outcome));
            drop(round);
            shared.notify_all();
        }
    }

    /// Ends the round because somebody did not come in time, unless all came just now.
    fn give_up(&self, shared: &Shared, me: Pe) -> Outcome {
        let mut round = self.round.lock();
        if round.outcomes[me.index()].is_none() {
            // Others may have given up before; whom they blamed then is still the one.
            let blamed = shared.blamed().filter(|pe| round.is_absent(*pe));
            let first = || shared.world.after(me).find(|pe| round.is_absent(*pe));
            let missing = blamed.or_else(first).unwrap_or(me);
            round.end(&Err(Refusal::Missing(missing)));
        }
        // Ours is there: either it was, or the round that has just ended was ours.
        let outcome = round.outcomes[me.index()].take().unwrap_or(Err(Refusal::Missing(me)));
        drop(round);
        shared.notify_all();
        outcome
    }
}

/// The refusal as this rank's error.
fn explain(shared: &Shared, me: Pe, ask: Ask, refusal: Refusal, deadline: Deadline) -> Error {
    let call = ask.call();
    match refusal {
        Refusal::Differ(asks) => ask.differs(me, &asks),
        Refusal::Missing(missing) => {
            let waited = deadline.waited();
            let label = Label { stage: call, piece: 0 };
            shared.raise(me, Report { waited, ..Report::plain(me, missing, label) });
            let error = Error::Missing { call, me, missing, waited };
            shared.rank(me).fail(&error);
            error
        }
        Refusal::NoMemory(pe) => {
            let wanted = if let Ask::Alloc(bytes) = ask { bytes } else { Bytes::default() };
            Error::NoMemory { call, pe, wanted }
        }
        Refusal::Busy(holder) => {
            let region = if let Ask::Free(region) = ask { region } else { RegionId(0) };
            let len = shared.region(region).map_or(0, |region| region.len.0);
            Error::Conflict { call, wanted: Span { region, offset: 0, len }, holder }
        }
        Refusal::Unknown => {
            let region = if let Ask::Free(region) = ask { region } else { RegionId(0) };
            Error::UnknownRegion { call, region }
        }
        Refusal::Full(error) => error,
    }
}
