//! Injected faults: delays that reorder streams, late signals, a lost signal, a rank that dies, stalls, sends twice or
//! corrupts. From a seed, so that they come again.
//!
//! What happens to the k-th operation of a rank's j-th stream follows from (seed, rank, j, k) alone; which signal is
//! lost, and which call goes wrong, follows from the order of the rank's own calls. Timing of threads has no part in it.
use std::{str::FromStr, time::Duration};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    Error, Pe, SignalId, World,
    sync::{AtomicU64, Mutex, Ordering},
};

/// What to inject; nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Chooses among all that could happen.
    pub seed: u64,
    /// Every operation of a stream begins up to this much later.
    pub delay: Duration,
    /// A signal that never comes.
    pub lost: Option<Lost>,
    /// One in four posts comes this much after its data, and holds its stream so long.
    pub late: Option<Duration>,
    /// A rank with a fixed delay before each operation.
    pub slow: Option<Slow>,
    /// One rank goes wrong in one call.
    pub misstep: Option<Misstep>,
}

/// Takes the `nth` post (from 0) of a rank to a peer away, and with it all later ones to the same word, which would
/// make up for it. [`crate::Fabric::recover`] ends it for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Whose post; `None` leaves the choice to the seed.
    pub rank: Option<Pe>,
    /// Which one, in the order in which the rank queues them.
    pub nth: u64,
}

/// One rank whose streams are slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// Which rank.
    pub rank: Pe,
    /// Added before each operation.
    pub delay: Duration,
}

/// One rank goes wrong once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misstep {
    /// Which rank.
    pub rank: Pe,
    /// In which of its calls, from 0: of its puts and waits, or for [`Wrong::Twice`] and [`Wrong::Corrupt`] of its puts
    /// that carry data to a peer.
    pub nth: u64,
    /// How.
    pub wrong: Wrong,
}

/// What goes wrong in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It panics.
    Panics,
    /// It returns [`Error::Injected`] at once.
    Fails,
    /// It begins so much later, and nothing ends that time early.
    Stalls(Duration),
    /// The put is queued twice.
    Twice,
    /// One byte of the put's data changes on the way.
    Corrupt,
}

/// How late a late post is unless it is said.
const LATE: Duration = Duration::from_millis(50);

impl Faults {
    /// The same faults from another seed.
    #[must_use]
    pub const fn seeded(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

impl FromStr for Faults {
    type Err = Error;

    /// Any of `delay=TIME`, `lost`, `lost=N`, `late`, `late=TIME`, with commas between; TIME is a number and us, ms or s.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Text {
            what: "a fault",
            text: text.to_owned(),
            expected: "delay=5ms, lost, lost=N (the N-th signal), late or late=50ms (units us, ms, s), or several with commas",
        };
        text.split(',').try_fold(Self::default(), |mut faults, item| {
            let (name, value) =
                item.trim().split_once('=').map_or((item.trim(), None), |(n, v)| (n, Some(v)));
            match (name, value) {
                ("delay", Some(value)) => faults.delay = time(value).ok_or_else(wrong)?,
                ("lost", None) => faults.lost = Some(Lost::default()),
                ("lost", Some(value)) => {
                    faults.lost = Some(Lost { rank: None, nth: value.parse().map_err(|_| wrong())? });
                }
                ("late", None) => faults.late = Some(LATE),
                ("late", Some(value)) => faults.late = Some(time(value).ok_or_else(wrong)?),
                _ => return Err(wrong()),
            }
            Ok(faults)
        })
    }
}

/// A number and its unit, at most an hour.
fn time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return None,
    };
    let seconds = digits.trim().parse::<f64>().ok()? * unit;
    (0.0..=3600.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

/// What befalls one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// Begins so much later.
    pub(super) delay: Duration,
    /// Posts so long after its data.
    pub(super) late: Duration,
}

/// The fates of one stream's operations, in order.
#[derive(Debug)]
pub(super) struct Fates {
    faults: Faults,
    rank: Pe,
    random: ChaCha8Rng,
}

impl Fates {
    /// Of the `stream`-th stream that `rank` made.
    pub(super) fn new(faults: Faults, rank: Pe, stream: u32) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(faults.seed);
        random.set_stream(u64::from(rank.0) << 32 | u64::from(stream));
        Self { faults, rank, random }
    }

    /// The next one. Every operation draws the same number of random words, whatever it is.
    pub(super) fn draw(&mut self) -> Fate {
        let (share, lot) = (self.random.next_u32(), self.random.next_u32());
        let slow = self.faults.slow.filter(|slow| slow.rank == self.rank).map_or(Duration::ZERO, |s| s.delay);
        let delay = self.faults.delay.mul_f64(f64::from(share) / f64::from(u32::MAX));
        let late = self.faults.late.filter(|_| lot.is_multiple_of(4)).unwrap_or_default();
        Fate { delay: slow + delay, late }
    }
}

/// Loses one rank's signal.
#[derive(Debug)]
pub(super) struct Losses {
    /// Number of the post to lose, until it has been.
    nth: Option<u64>,
    state: Mutex<Losing>,
}

#[derive(Debug, Default)]
struct Losing {
    posts: u64,
    word: Option<(Pe, SignalId)>,
    over: bool,
}

impl Losses {
    /// What `rank` loses.
    pub(super) fn new(faults: Faults, rank: Pe, world: World) -> Self {
        let chosen = |lost: &Lost| {
            let ranks = world.size() as u64;
            let seeded = ChaCha8Rng::seed_from_u64(faults.seed).next_u64() % ranks;
            lost.rank.map_or(seeded, |pe| u64::from(pe.0)) == u64::from(rank.0)
        };
        Self { nth: faults.lost.filter(chosen).map(|lost| lost.nth), state: Mutex::default() }
    }

    /// Whether this post to a peer, the next one queued, is lost.
    pub(super) fn takes(&self, to: Pe, signal: SignalId) -> bool {
        let Some(nth) = self.nth else { return false };
        let mut state = self.state.lock();
        if state.posts == nth && !state.over {
            state.word = Some((to, signal));
        }
        state.posts += 1;
        state.word == Some((to, signal))
    }

    /// The group recovered: a loss that happened does not happen again.
    pub(super) fn recovered(&self) {
        let mut state = self.state.lock();
        if state.word.take().is_some() {
            state.over = true;
        }
    }
}

/// Counts one rank's calls until its misstep.
#[derive(Debug)]
pub(super) struct Missteps {
    mine: Option<Misstep>,
    calls: AtomicU64,
}

impl Missteps {
    /// Those of `rank`.
    pub(super) fn new(faults: Faults, rank: Pe) -> Self {
        Self { mine: faults.misstep.filter(|misstep| misstep.rank == rank), calls: AtomicU64::new(0) }
    }

    /// Of the next put or wait.
    pub(super) fn at_call(&self) -> Option<Wrong> {
        self.next(|wrong| !matches!(wrong, Wrong::Twice | Wrong::Corrupt))
    }

    /// Of the next put; `carries` if it has data for a peer.
    pub(super) fn at_put(&self, carries: bool) -> Option<Wrong> {
        self.next(|wrong| carries && matches!(wrong, Wrong::Twice | Wrong::Corrupt))
    }

    fn next(&self, counts: impl Fn(Wrong) -> bool) -> Option<Wrong> {
        let Misstep { nth, wrong, .. } = self.mine.filter(|misstep| counts(misstep.wrong))?;
        (self.calls.fetch_add(1, Ordering::Relaxed) == nth).then_some(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_the_faults() {
        let parse = |text: &str| text.parse::<Faults>();
        let ms = Duration::from_millis;
        assert_eq!(parse("delay=5ms"), Ok(Faults { delay: ms(5), ..Faults::default() }));
        assert_eq!(parse("lost"), Ok(Faults { lost: Some(Lost::default()), ..Faults::default() }));
        assert_eq!(parse("late").unwrap().late, Some(ms(50)));
        let both = parse("delay=0.5s, lost=3").unwrap();
        assert_eq!((both.delay, both.lost), (ms(500), Some(Lost { rank: None, nth: 3 })));
        for wrong in [
            "",
            "delay",
            "delay=5",
            "delay=ms",
            "delay=-1ms",
            "delay=NaNs",
            "delay=9999s",
            "lost=x",
            "lots",
            "late=",
        ] {
            let text = parse(wrong).unwrap_err().to_string();
            assert!(text.contains("delay=5ms, lost"), "{wrong}: {text}");
        }
    }

    #[test]
    fn fates_come_again_from_their_seed_only() {
        let faults = Faults { delay: Duration::from_secs(1), late: Some(LATE), ..Faults::default() };
        let draws = |seed, rank, stream| {
            let mut fates = Fates::new(faults.seeded(seed), Pe(rank), stream);
            (0..50).map(|_| fates.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1, 2, 3), draws(1, 2, 3));
        let others = [draws(2, 2, 3), draws(1, 3, 3), draws(1, 2, 4)];
        assert!(others.iter().all(|other| *other != draws(1, 2, 3)));
        let all = draws(1, 0, 0);
        assert!(all.iter().all(|fate| fate.delay <= faults.delay));
        assert!((3..30).contains(&all.iter().filter(|fate| fate.late == LATE).count()));
    }

    #[test]
    fn a_misstep_comes_once_and_counts_its_own_kind_of_call() {
        let at = |rank, nth, wrong| {
            let misstep = Some(Misstep { rank: Pe(rank), nth, wrong });
            Missteps::new(Faults { misstep, ..Faults::default() }, Pe(1))
        };
        let fails = at(1, 2, Wrong::Fails);
        assert_eq!([(); 4].map(|()| fails.at_call()), [None, None, Some(Wrong::Fails), None]);
        let twice = at(1, 1, Wrong::Twice);
        assert_eq!(twice.at_call(), None);
        let puts = [true, false, true, true].map(|carries| twice.at_put(carries));
        assert_eq!(puts, [None, None, Some(Wrong::Twice), None]);
        assert_eq!(at(0, 0, Wrong::Panics).at_call(), None);
    }

    #[test]
    fn one_word_is_lost_until_recovery() {
        let world = World::new(3).unwrap();
        let faults = Faults { lost: Some(Lost { rank: Some(Pe(1)), nth: 1 }), ..Faults::default() };
        assert!(!Losses::new(faults, Pe(0), world).takes(Pe(1), SignalId(0)));
        let losses = Losses::new(faults, Pe(1), world);
        let takes = |word| losses.takes(Pe(2), SignalId(word));
        assert_eq!([0, 7, 8, 7].map(takes), [false, true, false, true]);
        losses.recovered();
        assert_eq!([7, 7].map(takes), [false, false]);
        // Left to the seed, exactly one rank loses.
        let seeded = Faults { lost: Some(Lost::default()), seed: 5, ..Faults::default() };
        let losers = world.ranks().filter(|&pe| Losses::new(seeded, pe, world).takes(Pe(9), SignalId(0)));
        assert_eq!(losers.count(), 1);
    }
}
