//! Agreement: the first signal of a call carries the plan's digest, and a difference is named (rule P1).
//!
//! Four slots per peer. A peer can be at most three uses ahead of the last use that I compared with it: it begins use
//! u+3 only after I have freed use u+1, and before I free a use I compare the one before it with everybody.
use std::time::Duration;

use symm_buffer::{
    Bytes, Copy2d, Corner, Epoch, Fabric, Label, Pe, Post, Put, RegionId, SignalId, Span, Step, Use, Wait,
};

use super::CallSpec;
use super::signals::{SignalKind, SignalTable};
use crate::{Digest, Error};

const RING: usize = 4;
/// Pass, options and the five parts of a digest.
const WORDS: usize = 7;
/// What a rank says: the pass, a hash of the call's options, the plan's digest.
pub(crate) type Words = [u64; WORDS];
/// A slot is a cache-line pair, so that two writers never share one.
const SLOT: usize = 128;

/// Sends this rank's digests and compares those of the peers.
pub(crate) struct Hello {
    region: RegionId,
    signals: SignalTable,
    /// What I said in the last uses.
    said: [Words; RING],
    /// For each rank the first use that was not compared yet.
    unchecked: Vec<Use>,
}

impl Hello {
    /// Collective.
    pub(crate) fn new<F: Fabric>(
        fabric: &F,
        signals: SignalTable,
        deadline: Duration,
    ) -> Result<Self, Error> {
        // One row per rank for what it says to me, and one for what I say.
        let rows = fabric.world().size() + 1;
        let region = fabric.alloc(Bytes(rows * RING * SLOT), deadline)?;
        let unchecked = vec![Use(0); fabric.world().size()];
        Ok(Self { region, signals, said: [[0; WORDS]; RING], unchecked })
    }

    pub(crate) fn reset(&mut self) {
        self.unchecked.fill(Use(0));
    }

    pub(crate) fn free<F: Fabric>(self, fabric: &F, deadline: Duration) -> Result<(), Error> {
        Ok(fabric.free(self.region, deadline)?)
    }

    /// Tells everybody which pass of which plan begins.
    pub(crate) fn say<F: Fabric>(
        &mut self,
        fabric: &F,
        stream: &F::Stream,
        at: Use,
        words: Words,
    ) -> Result<(), Error> {
        self.said[ring(at)] = words;
        let mine = self.slot(fabric.world().size(), at);
        fabric.store(
            Span { region: self.region, offset: mine, len: WORDS * 8 },
            bytemuck::cast_slice(&words),
        )?;
        let theirs = self.slot(fabric.me().index(), at);
        let corner = |offset| Corner { region: self.region, offset, pitch: SLOT };
        let copy = Copy2d { src: corner(mine), dst: corner(theirs), width: WORDS * 8, rows: 1 };
        let value = Epoch::new(fabric.incarnation(), at, Step(1))?;
        let signal = self.signals.word(SignalKind::Hello, fabric.me());
        for to in fabric.world().after(fabric.me()) {
            fabric.put_signal(stream, Put { to, copies: &[copy], post: Some(Post { signal, value }) })?;
        }
        Ok(())
    }

    /// Compares all uses up to `at` with `peer`'s; returns how long it waited for the peer to begin `at`.
    pub(crate) fn check<F: Fabric>(
        &mut self,
        fabric: &F,
        peer: Pe,
        at: Use,
        deadline: Duration,
    ) -> Result<Duration, Error> {
        let mut blocked = Duration::ZERO;
        while self.unchecked[peer.index()] <= at {
            let next = self.unchecked[peer.index()];
            let wait = Wait {
                signal: self.word(peer),
                at_least: Epoch::new(fabric.incarnation(), next, Step(1))?,
                peer,
                label: Label { stage: SignalKind::Hello.stage(), piece: 0 },
            };
            blocked += fabric.wait(wait, deadline)?;
            self.compare(fabric, peer, next)?;
            self.unchecked[peer.index()] = next.next();
        }
        Ok(blocked)
    }

    /// A difference that has already arrived, if any: the cause of a failure that another rank reported first.
    pub(crate) fn arrived_difference<F: Fabric>(&self, fabric: &F, at: Use) -> Option<Error> {
        let value = Epoch::new(fabric.incarnation(), at, Step(1)).ok()?;
        let arrived = |peer: &Pe| fabric.seen(self.word(*peer)).is_ok_and(|seen| seen >= value);
        fabric.world().after(fabric.me()).filter(arrived).find_map(|peer| {
            self.compare(fabric, peer, at).err().filter(|e| matches!(e, Error::PlanMismatch { .. }))
        })
    }

    fn word(&self, peer: Pe) -> SignalId {
        self.signals.word(SignalKind::Hello, peer)
    }

    fn compare<F: Fabric>(&self, fabric: &F, peer: Pe, at: Use) -> Result<(), Error> {
        let span = Span { region: self.region, offset: self.slot(peer.index(), at), len: WORDS * 8 };
        let bytes = fabric.load(span)?;
        let mut theirs =
            bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or([0; 8])));
        let differs = self.said[ring(at)].iter().position(|mine| theirs.next() != Some(*mine));
        match differs {
            None => Ok(()),
            Some(word) => Err(Error::PlanMismatch { rank: fabric.me(), peer, field: field(word) }),
        }
    }

    fn slot(&self, row: usize, at: Use) -> usize {
        (row * RING + ring(at)) * SLOT
    }
}

fn ring(at: Use) -> usize {
    usize::try_from(at.0 % RING as u64).unwrap_or(0)
}

pub(crate) fn words(spec: &CallSpec<'_>) -> Words {
    let mut words = [0; WORDS];
    words[0] = 1 + spec.pass as u64;
    words[1] = spec.options;
    for (word, (_, hash)) in words[2..].iter_mut().zip(spec.plan.digest.parts()) {
        *word = hash;
    }
    words
}

fn field(word: usize) -> &'static str {
    match word {
        0 => "pass",
        1 => "options",
        _ => Digest::default().parts()[word - 2].0,
    }
}
