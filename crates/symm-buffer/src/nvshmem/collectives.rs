//! Collectives of a group: what all ranks do together, or none.
use std::time::Duration;

use super::block::{At, Hall};
use super::fabric::NvshmemFabric;
use super::heap::Chunk;
use super::meeting::{Outcome, Round};
use super::node::Node;
use super::record;
use crate::ask::Ask;
use crate::deadline::Deadline;
use crate::layout::ALIGNMENT;
use crate::sync::Ordering;
use crate::{Bytes, Error, Label, Notice, Report};

impl NvshmemFabric {
    /// Ends the group: drains my streams, meets all ranks, gives the memory back. Collective.
    ///
    /// # Errors
    /// [`Error::Drain`], [`Error::Missing`], [`Error::Aborted`], [`Error::Lost`], [`Error::Stuck`]; the memory is then
    /// lost until the process ends.
    pub fn close(mut self, deadline: Duration) -> Result<(), Error> {
        self.drain_all(Notice::Closing.name(), Deadline::after(deadline))?;
        self.meet(Ask::Close, deadline)?;
        let mut chunks = self.heap.lock().take_all();
        chunks.extend(self.words.take());
        self.world.collective(Notice::Closing.name(), |session| {
            chunks.into_iter().for_each(|chunk| chunk.free(session));
            Ok(())
        })
    }

    pub(super) fn drain_all(&self, call: &'static str, deadline: Deadline) -> Result<(), Error> {
        let cores = self.node.cores();
        cores.iter().try_for_each(|core| core.drain(&self.node, call, deadline).map(drop))
    }

    /// Meets all ranks over `ask`.
    pub(super) fn meet(&self, ask: Ask, budget: Duration) -> Result<(), Error> {
        let (node, call, deadline) = (&*self.node, ask.call(), Deadline::after(budget));
        let (hall, end): (_, &dyn Fn()) = match ask {
            Ask::Recover => (Hall::Recovery, &|| begin_again(node)),
            _ => (Hall::Collective, &|| ()),
        };
        let obeys_abort = hall == Hall::Collective;
        if obeys_abort {
            self.check_alive(call)?;
        }
        let round = Round::enter(&node.block, hall, node.me, ask, end);
        match round.wait(deadline, || node.aborted(call).filter(|_| obeys_abort))? {
            Outcome::Same => Ok(()),
            Outcome::Differ(asks) => Err(ask.differs(node.me, &asks)),
            Outcome::Missing(missing) => {
                let (me, waited) = (node.me, deadline.waited());
                let label = Label { stage: call, piece: 0 };
                node.raise(Report { waited, ..Report::plain(me, missing, label) });
                let error = Error::Missing { call, me, missing, waited };
                node.fail(&error);
                Err(error)
            }
        }
    }

    /// More heap. Every rank has come to the same place, so NVSHMEM's own collective finds all.
    pub(super) fn grow(&self, bytes: Bytes, deadline: Duration) -> Result<(), Error> {
        let wanted = bytes.0.max(self.world.config.chunk.0);
        let wanted = wanted.checked_next_multiple_of(ALIGNMENT).unwrap_or(wanted);
        let (call, me) = (Notice::Alloc.name(), self.node.me);
        let chunk = self.world.collective(call, move |session| Chunk::new(session, me, wanted));
        let all = self.meet(Ask::Grown(u64::from(chunk.is_ok())), deadline);
        let chunk = match (chunk, all) {
            (Ok(chunk), Ok(())) => chunk,
            // Mine or a peer's.
            (Err(Error::Nvshmem(_)), _) | (Ok(_), Err(Error::CallMismatch { .. })) => {
                return Err(Error::NoMemory { call, pe: me, wanted: bytes });
            }
            (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
        };
        self.heap.lock().grow(wanted, chunk);
        Ok(())
    }
}

/// Done by the last rank that comes to the recovery: all streams are drained, nobody waits.
fn begin_again(node: &Node) {
    node.block.word(At::Incarnation).fetch_add(1, Ordering::AcqRel);
    record::clear(&node.block);
}
