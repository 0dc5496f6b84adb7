//! The caller's device memory as sources of puts: read in place, never copied.
use std::collections::HashMap;
use std::marker::PhantomData;
use std::time::Duration;

use super::driver::is_idle;
use super::node::Node;
use super::stream::Core;
use crate::deadline::{Deadline, poll_until};
use crate::sync::{Arc, Mutex, thread};
use crate::{Bytes, Error, Label, RegionId, Report};

/// Ids from here on are sources, known to one rank; below are regions of the heap.
const FIRST: u64 = 1 << 63;

/// Device memory that puts may read.
#[derive(Clone, Copy, Debug)]
pub struct DeviceSource<'a> {
    pub(super) address: u64,
    pub(super) len: Bytes,
    _memory: PhantomData<&'a [u8]>,
}

impl DeviceSource<'_> {
    /// `len` bytes at a device address.
    ///
    /// # Safety
    /// They are memory of the fabric's device, written by work that the streams of its puts come after, and stay as they
    /// are as long as this lives.
    #[expect(unsafe_code, reason = "a bare address is a promise of the caller")]
    pub const unsafe fn from_raw(address: u64, len: Bytes) -> Self {
        Self { address, len, _memory: PhantomData }
    }
}

/// An open source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    pub(super) address: u64,
    pub(super) len: Bytes,
}

/// The open sources of a rank.
#[derive(Debug, Default)]
pub(super) struct Sources {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    known: HashMap<RegionId, Source>,
    /// The last work that names a source, per stream.
    uses: Vec<(RegionId, Arc<Core>, u64)>,
}

impl Sources {
    pub(super) fn find(&self, id: RegionId) -> Option<Source> {
        self.open.lock().known.get(&id).copied()
    }

    fn add(&self, sources: &[DeviceSource<'_>]) -> Vec<RegionId> {
        let mut open = self.open.lock();
        let add = |source: &DeviceSource<'_>| {
            let id = RegionId(FIRST | open.next);
            open.next += 1;
            open.known.insert(id, Source { address: source.address, len: source.len });
            id
        };
        sources.iter().map(add).collect()
    }

    /// Queues work that names regions, and keeps until when it reads those that are sources.
    pub(super) fn track(
        &self,
        core: &Arc<Core>,
        named: impl Iterator<Item = RegionId>,
        push: impl FnOnce() -> Result<u64, Error>,
    ) -> Result<(), Error> {
        let mut ids: Vec<RegionId> = named.filter(|id| id.0 >= FIRST && *id != RegionId::NONE).collect();
        ids.sort_unstable();
        ids.dedup();
        let number = push()?;
        let mut open = self.open.lock();
        for id in ids {
            let known = open.uses.iter_mut().find(|(used, by, _)| *used == id && Arc::ptr_eq(by, core));
            match known {
                Some((.., last)) => *last = number,
                None => open.uses.push((id, core.clone(), number)),
            }
        }
        Ok(())
    }

    /// Forgets the sources; what still reads them.
    fn remove(&self, ids: &[RegionId]) -> Vec<(Arc<Core>, u64)> {
        let mut open = self.open.lock();
        open.known.retain(|id, _| !ids.contains(id));
        let (ours, rest) = std::mem::take(&mut open.uses).into_iter().partition(|(id, ..)| ids.contains(id));
        open.uses = rest;
        let ours: Vec<(RegionId, Arc<Core>, u64)> = ours;
        ours.into_iter().map(|(_, core, number)| (core, number)).collect()
    }
}

/// An open source scope.
pub(super) struct Scope<'a> {
    sources: &'a Sources,
    /// Whose puts to wait for at the end; none: the caller does.
    node: Option<&'a Node>,
    pub(super) ids: Vec<RegionId>,
}

impl<'a> Scope<'a> {
    /// Ends when no put reads the sources any more.
    pub(super) fn open(sources: &'a Sources, node: &'a Node, lent: &[DeviceSource<'_>]) -> Self {
        Self { sources, node: Some(node), ids: sources.add(lent) }
    }

    /// Ends at once.
    pub(super) fn lent(sources: &'a Sources, lent: &[DeviceSource<'_>]) -> Self {
        Self { sources, node: None, ids: sources.add(lent) }
    }
}

impl Drop for Scope<'_> {
    /// Also on unwind. A panic gives the group up first, so that puts behind stream waits end at once. Every put before
    /// ours in a stream ends, and every stream wait by its deadline, so this needs none; a stream that failed runs nothing.
    fn drop(&mut self) {
        let uses = self.sources.remove(&self.ids);
        let Some(node) = self.node else { return };
        if thread::panicking() {
            node.raise(Report::plain(node.me, node.me, Label { stage: "panic", piece: 0 }));
        }
        for (core, number) in uses {
            let mut looks = 0_u32;
            let read = || {
                looks = looks.wrapping_add(1);
                let failed = looks.is_multiple_of(64) && is_idle(&core.stream).is_err();
                (core.done(node) >= number || failed).then_some(())
            };
            _ = poll_until(Deadline::after(Duration::MAX), read);
        }
    }
}
