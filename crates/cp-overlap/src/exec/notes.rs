//! Agreement of calls that return at once: notes from host to host, compared as they come (rule P1).
//!
//! Nobody overwrites a note that a peer has not read: before a rank tells note n it has compared everybody's note
//! n - [`AHEAD`], and a rank that told n - `AHEAD` had compared those before n - 2 `AHEAD`, the one that n overwrites.
use std::time::{Duration, Instant};

use symm_buffer::fabric::{NOTES, Note};
use symm_buffer::{Epoch, Error as Symm, Fabric, Label, Pe, Report, SignalId, Step, Use, World};

use super::signals::SignalKind;
use super::{CallSpec, pause};
use crate::{Digest, Error};

/// Calls that a rank may have told before all others have told theirs.
const AHEAD: u64 = NOTES as u64 / 2;
/// Bits of the first word of a note that say which pass; the others are of the hash of the call's options.
const PASS_BITS: u32 = 2;

/// What was compared with whom.
#[derive(Debug)]
pub(crate) struct Notes {
    /// For each rank the first use that was not compared yet.
    unchecked: Vec<Use>,
}

impl Notes {
    pub(crate) fn new(world: World) -> Self {
        Self { unchecked: vec![Use(0); world.size()] }
    }

    pub(crate) fn reset(&mut self) {
        self.unchecked.fill(Use(0));
    }

    /// Tells everybody what begins, and compares what has come. Blocks only if a peer is [`AHEAD`] calls behind; returns
    /// for how long.
    pub(crate) fn tell<F: Fabric>(
        &mut self,
        fabric: &F,
        at: Use,
        note: Note,
        deadline: Duration,
    ) -> Result<Duration, Error> {
        let blocked = match at.0.checked_sub(AHEAD) {
            Some(behind) => self.await_all(fabric, Use(behind), deadline)?,
            None => Duration::ZERO,
        };
        fabric.publish(number(fabric, at)?, note);
        self.compare(fabric, at)?;
        Ok(blocked)
    }

    /// Compares all notes up to use `at` that have come.
    ///
    /// # Errors
    /// [`Error::PlanMismatch`].
    pub(crate) fn compare<F: Fabric>(&mut self, fabric: &F, at: Use) -> Result<(), Error> {
        for peer in fabric.world().after(fabric.me()) {
            while self.unchecked[peer.index()] <= at {
                let next = self.unchecked[peer.index()];
                let number = number(fabric, next)?;
                let Some(theirs) = fabric.published(peer, number)? else { break };
                let mine = fabric.published(fabric.me(), number)?;
                if let Some(field) = mine.and_then(|mine| difference(mine, theirs)) {
                    return Err(Error::PlanMismatch { rank: fabric.me(), peer, field });
                }
                self.unchecked[peer.index()] = next.next();
            }
        }
        Ok(())
    }

    /// Blocks until all notes up to use `at` have come and are compared; returns for how long.
    pub(crate) fn await_all<F: Fabric>(
        &mut self,
        fabric: &F,
        at: Use,
        deadline: Duration,
    ) -> Result<Duration, Error> {
        let start = Instant::now();
        for look in 0.. {
            self.compare(fabric, at)?;
            let Some(peer) = self.first_behind(fabric, at) else { break };
            fabric.status()?;
            let waited = start.elapsed();
            if waited >= deadline {
                return Err(expired(fabric, peer, at, waited));
            }
            pause(look, waited);
        }
        Ok(start.elapsed())
    }

    fn first_behind<F: Fabric>(&self, fabric: &F, at: Use) -> Option<Pe> {
        fabric.world().after(fabric.me()).find(|peer| self.unchecked[peer.index()] <= at)
    }
}

/// Numbers grow over recoveries too.
fn number<F: Fabric>(fabric: &F, at: Use) -> Result<u64, Error> {
    // One more per use: the slots of a rank's notes are taken by turns.
    Ok(Epoch::new(fabric.incarnation(), at, Step(0))?.0 >> (Step::MAX.0 + 1).ilog2())
}

fn expired<F: Fabric>(fabric: &F, peer: Pe, at: Use, waited: Duration) -> Error {
    let label = Label { stage: SignalKind::Hello.stage(), piece: 0 };
    let wanted = Epoch::new(fabric.incarnation(), at, Step(1)).unwrap_or_default();
    let report = Report { signal: SignalId::NONE, wanted, waited, ..Report::plain(fabric.me(), peer, label) };
    fabric.abort(report);
    Symm::Timeout(report).into()
}

/// What a call says of itself.
pub(crate) fn note(spec: &CallSpec<'_>) -> Note {
    let mut note = [0; 6];
    note[0] = spec.options << PASS_BITS | (1 + spec.pass as u64);
    for (word, (_, hash)) in note[1..].iter_mut().zip(spec.plan.digest.parts()) {
        *word = hash;
    }
    note
}

/// The name of the first difference.
fn difference(mine: Note, theirs: Note) -> Option<&'static str> {
    let word = (0..mine.len()).find(|word| mine[*word] != theirs[*word])?;
    Some(match word {
        0 if (mine[0] ^ theirs[0]) & ((1 << PASS_BITS) - 1) != 0 => "pass",
        0 => "options",
        _ => Digest::default().parts()[word - 1].0,
    })
}
