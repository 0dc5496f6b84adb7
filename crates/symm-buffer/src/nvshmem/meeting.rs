//! Collectives between processes: a word in which each rank has a bit, and two words a rank that say what it asks for.
//!
//! Who sets the last bit ends the round for all: it compares the ballots, writes the outcome and counts the generation
//! up. Who gives up takes its bit back, which fails once the word is full: then the round has been ended by somebody, and
//! its outcome holds. So a round happens for all or for none. Ballots and outcomes alternate between two places by
//! generation: nobody comes to the round after next before all have left this one.
use std::time::Duration;

use super::block::{At, Block, Hall};
use crate::ask::Ask;
use crate::deadline::{Deadline, poll_until};
use crate::sync::Ordering;
use crate::{Bytes, Error, Pe, RegionId};

/// How a round ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All asked for the same.
    Same,
    /// They did not; what each asked for, in order of rank.
    Differ(Vec<Ask>),
    /// Somebody did not come in time, or left, or is dead.
    Missing(Pe),
}

/// For the last to come to end a round: some stores.
const LAST_MOMENT: Duration = Duration::from_secs(1);
const SAME: u64 = 1;
const DIFFER: u64 = 2;

/// As two words of the block.
const fn words(ask: Ask) -> [u64; 2] {
    match ask {
        Ask::Alloc(bytes) => [1, bytes.0 as u64],
        Ask::Free(region) => [2, region.0],
        Ask::Signals(count) => [3, count as u64],
        Ask::Barrier => [4, 0],
        Ask::Recover => [5, 0],
        Ask::Grown(yes) => [6, yes],
        Ask::Close => [7, 0],
    }
}

#[expect(clippy::cast_possible_truncation, reason = "words that `words` made of these types")]
const fn from_words([kind, value]: [u64; 2]) -> Ask {
    match kind {
        1 => Ask::Alloc(Bytes(value as usize)),
        2 => Ask::Free(RegionId(value)),
        3 => Ask::Signals(value as u32),
        5 => Ask::Recover,
        6 => Ask::Grown(value),
        7 => Ask::Close,
        _ => Ask::Barrier,
    }
}

/// One rank's way through a round.
pub(super) struct Round<'a> {
    block: &'a Block,
    hall: Hall,
    me: Pe,
    generation: u64,
}

impl<'a> Round<'a> {
    /// Comes to the current round. `end` is done by the last to come, before all others go on.
    pub(super) fn enter(block: &'a Block, hall: Hall, me: Pe, ask: Ask, end: impl FnOnce()) -> Self {
        // It cannot change before my bit is set.
        let generation = block.word(At::Generation(hall)).load(Ordering::Acquire);
        let round = Self { block, hall, me, generation };
        for (at, word) in words(ask).into_iter().enumerate() {
            block.word(At::Ballot(hall, round.parity(), me, at)).store(word, Ordering::Relaxed);
        }
        let before = block.word(At::Presence(hall)).fetch_or(round.bit(), Ordering::AcqRel);
        if before | round.bit() == round.full() {
            let asks = round.asks();
            let same = asks.iter().all(|other| *other == asks[0]);
            end();
            let outcome = if same { SAME } else { DIFFER };
            block.word(At::Outcome(hall, round.parity())).store(outcome, Ordering::Relaxed);
            block.word(At::Presence(hall)).store(0, Ordering::Relaxed);
            block.word(At::Generation(hall)).store(generation + 1, Ordering::Release);
        }
        round
    }

    /// Waits for the end. `give_up` says why not to wait any longer.
    pub(super) fn wait(
        &self,
        deadline: Deadline,
        mut give_up: impl FnMut() -> Option<Error>,
    ) -> Result<Outcome, Error> {
        let mut left = false;
        let poll = || {
            if let Some(outcome) = self.outcome() {
                return Some(Ok(outcome));
            }
            if !left && let Some(error) = give_up() {
                left = self.leave();
                return left.then_some(Err(error));
            }
            let gone = self.gone()?;
            left = self.leave();
            left.then_some(Ok(Outcome::Missing(gone)))
        };
        match poll_until(deadline, poll) {
            Ok(waited) => waited.value,
            Err(_) => Ok(self.expire()),
        }
    }

    /// Nobody has ended the round in time.
    fn expire(&self) -> Outcome {
        let missing = self.block.sizes().world.after(self.me).find(|pe| !self.is_present(*pe));
        let missing = Outcome::Missing(missing.unwrap_or(self.me));
        if self.leave() {
            return missing;
        }
        // All came at the last moment: who came last is ending it, unless it died there.
        match poll_until(Deadline::after(LAST_MOMENT), || self.outcome()) {
            Ok(waited) => waited.value,
            Err(_) => missing,
        }
    }

    fn outcome(&self) -> Option<Outcome> {
        let generation = self.block.word(At::Generation(self.hall)).load(Ordering::Acquire);
        if generation == self.generation {
            return None;
        }
        match self.block.word(At::Outcome(self.hall, self.parity())).load(Ordering::Relaxed) {
            SAME => Some(Outcome::Same),
            _ => Some(Outcome::Differ(self.asks())),
        }
    }

    fn asks(&self) -> Vec<Ask> {
        let word =
            |pe, at| self.block.word(At::Ballot(self.hall, self.parity(), pe, at)).load(Ordering::Relaxed);
        let ask = |pe| from_words([word(pe, 0), word(pe, 1)]);
        self.block.sizes().world.ranks().map(ask).collect()
    }

    /// Takes my bit back; false when the round has been ended.
    fn leave(&self) -> bool {
        let presence = self.block.word(At::Presence(self.hall));
        let full = self.full();
        let take = |bits: u64| (bits != full && bits & self.bit() != 0).then_some(bits & !self.bit());
        // Once it has ended my bit is gone, or somebody set all bits and is at it.
        presence.fetch_update(Ordering::AcqRel, Ordering::Acquire, take).is_ok()
    }

    /// Of those who are not in this round: the first that is dead, or else the first that has left, perhaps over that.
    fn gone(&self) -> Option<Pe> {
        let order = |pe: Pe| {
            let left = self.block.word(At::Left(pe)).load(Ordering::Acquire);
            let is_dead = self.block.word(At::Dead(pe)).load(Ordering::Acquire) > 0;
            (is_dead || left > 0).then_some((!is_dead, left, pe))
        };
        let absent = self.block.sizes().world.after(self.me).filter(|pe| !self.is_present(*pe));
        let first = absent.filter_map(order).min().map(|(.., pe)| pe);
        // A round that has ended has no bits at all.
        first.filter(|_| self.outcome().is_none())
    }

    fn is_present(&self, pe: Pe) -> bool {
        self.block.word(At::Presence(self.hall)).load(Ordering::Acquire) & (1 << pe.0) != 0
    }

    const fn parity(&self) -> usize {
        (self.generation % 2) as usize
    }

    const fn bit(&self) -> u64 {
        1 << self.me.0
    }

    const fn full(&self) -> u64 {
        u64::MAX >> (64 - self.block.sizes().world.size())
    }
}

#[cfg(test)]
mod tests {
    use super::super::block::Sizes;
    use super::*;
    use crate::World;
    use crate::sync::thread;

    const LONG: Duration = Duration::from_secs(20);

    fn block(ranks: u32) -> Block {
        let file = tempfile::tempfile().unwrap();
        Block::create(&file, Sizes { world: World::new(ranks).unwrap(), signals: 1 }).unwrap()
    }

    fn meet(block: &Block, me: u32, ask: Ask, patience: Duration) -> Outcome {
        let round = Round::enter(block, Hall::Collective, Pe(me), ask, || ());
        round.wait(Deadline::after(patience), || None).unwrap()
    }

    #[test]
    fn every_rank_gets_the_outcome_of_its_round() {
        for ranks in [1, 2, 3, 7] {
            let block = block(ranks);
            thread::scope(|scope| {
                for me in 0..ranks {
                    let block = &block;
                    scope.spawn(move || {
                        for round in 0..500_usize {
                            let differs = round % 3 == 1 && me == ranks - 1;
                            let ask = |odd| Ask::Alloc(Bytes(round * 2 + usize::from(odd)));
                            let outcome = meet(block, me, ask(differs), LONG);
                            let asks = (0..ranks).map(|pe| ask(round % 3 == 1 && pe == ranks - 1));
                            match round % 3 == 1 && ranks > 1 {
                                true => assert_eq!(outcome, Outcome::Differ(asks.collect())),
                                false => assert_eq!(outcome, Outcome::Same),
                            }
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn who_is_late_is_named_and_the_next_round_is_whole() {
        let block = block(3);
        thread::scope(|scope| {
            for me in [0, 2] {
                let block = &block;
                scope.spawn(move || {
                    // The other may have gone when the second of them looks.
                    let outcome = meet(block, me, Ask::Barrier, Duration::from_millis(30));
                    assert!(matches!(outcome, Outcome::Missing(_)), "{outcome:?}");
                    assert_eq!(meet(block, me, Ask::Barrier, LONG), Outcome::Same);
                });
            }
            thread::sleep(Duration::from_millis(200));
            assert_eq!(meet(&block, 1, Ask::Barrier, LONG), Outcome::Same);
        });
    }

    #[test]
    fn who_has_left_or_died_is_named_at_once() {
        for (word, place) in [(At::Left(Pe(1)), 1), (At::Dead(Pe(2)), 2)] {
            let block = block(3);
            block.word(word).store(1, Ordering::Release);
            assert_eq!(meet(&block, 0, Ask::Barrier, LONG), Outcome::Missing(Pe(place)));
        }
    }

    #[test]
    fn a_rank_that_gives_up_ends_no_round_that_others_get() {
        let block = block(2);
        let error = || Error::NoRanks { call: "test" };
        let round = Round::enter(&block, Hall::Recovery, Pe(0), Ask::Recover, || ());
        assert_eq!(round.wait(Deadline::after(LONG), || Some(error())), Err(error()));
        let late =
            Round::enter(&block, Hall::Recovery, Pe(1), Ask::Recover, || panic!("nobody else is there"));
        assert_eq!(late.wait(Deadline::after(Duration::ZERO), || None), Ok(Outcome::Missing(Pe(0))));
    }

    #[test]
    fn asks_come_through_words() {
        let asks =
            [Ask::Alloc(Bytes(7)), Ask::Free(RegionId(3)), Ask::Signals(9), Ask::Barrier, Ask::Recover];
        for ask in asks.into_iter().chain([Ask::Grown(1), Ask::Grown(0), Ask::Close]) {
            assert_eq!(from_words(words(ask)), ask);
        }
    }
}
