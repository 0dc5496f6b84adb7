//! NVSHMEM in this process: the rendezvous, one device, and the groups that are made of it.
#![expect(unsafe_code, reason = "NVSHMEM's collectives are promises about other ranks")]
use std::path::PathBuf;
use std::time::Duration;

use cudarc::driver::{CudaContext, result};
use nvshmem_sys::{Search, Session, UniqueId};

use super::apart::{self, Apart};
use super::block::{Block, Hall, Sizes};
use super::driver::{Named, Registered, context};
use super::fabric::NvshmemFabric;
use super::heap::Chunk;
use super::meeting::{Outcome, Round};
use super::node::Node;
use super::place::{Place, join};
use super::sharing::{self, Turn};
use crate::ask::Ask;
use crate::deadline::{Deadline, poll_until};
use crate::layout::ALIGNMENT;
use crate::rendezvous::{self, Library, Seat, Terms};
use crate::sync::{Arc, AtomicU32, Mutex, Ordering};
use crate::{Bytes, Error, Pe, World};

/// A GPU, by the driver's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ordinal(pub usize);

/// How NVSHMEM is found and used.
#[derive(Clone, Debug)]
pub struct NvshmemConfig {
    /// Where the library is looked for.
    pub search: Search,
    /// A folder in memory that the processes of a machine share; files in it live for some milliseconds.
    pub shared_folder: PathBuf,
    /// Signal words of a rank in a group: five for each of its ranks, for one group of `fm-cp`.
    pub signals: u32,
    /// The heap grows by at least this much.
    pub chunk: Bytes,
    /// Budget of [`load`](crate::Fabric::load) and [`store`](crate::Fabric::store), and of what NVSHMEM does itself when
    /// all ranks have come to a collective: it makes memory, gives it back, and ends.
    pub patience: Duration,
}

impl Default for NvshmemConfig {
    /// The system's search path, `/dev/shm`, 4,096 signals, chunks of 64 MiB, 30 s.
    fn default() -> Self {
        Self {
            search: Search::system(),
            shared_folder: PathBuf::from("/dev/shm"),
            signals: 4096,
            chunk: Bytes(64 << 20),
            patience: Duration::from_secs(30),
        }
    }
}

/// NVSHMEM, running on one device; at most one in a process. The ranks of a world are on one machine and reach each
/// other's memory; several may share a device, and then the machine has one such world at a time.
#[derive(Debug)]
pub struct NvshmemWorld {
    session: Arc<Mutex<Session>>,
    apart: Apart,
    pub(super) context: Arc<CudaContext>,
    pub(super) config: NvshmemConfig,
    me: Pe,
    world: World,
    /// Of the start.
    block: Block,
    /// If ranks share a device.
    turn: Option<Turn>,
    /// Of the files of its groups: the id's hash.
    name: String,
    /// Groups that were begun.
    groups: AtomicU32,
}

impl NvshmemWorld {
    /// Meets all ranks, over TCP, and starts NVSHMEM on `device`. Collective. The library's version goes into `terms`.
    ///
    /// Waits at most `deadline` for the other ranks, and as long again for NVSHMEM's own start. When a rank's process ends
    /// in the middle of that start, all others are told so within some seconds; NVSHMEM itself would wait for ever, so it
    /// is left where it is: this process can start it no more, and ends without the exit handlers of before
    /// ([`nvshmem_sys::Nvshmem::abandon`]).
    ///
    /// # Environment
    /// NVSHMEM starts without its proxy thread ([`nvshmem_sys::Nvshmem::without_proxy`]), so that a process may end
    /// without [`finalize`](Self::finalize), as it must when a peer is dead. For that `NVSHMEM_REMOTE_TRANSPORT` is set
    /// to `none` and `NVSHMEM_DISABLE_LOCAL_ONLY_PROXY` to `1` in the environment of this process, each unless it is
    /// there already, whatever its value. A program that has threads which read the environment from C at this moment
    /// should set both before it starts them: then nothing is written here.
    ///
    /// # Errors
    /// [`Error::Nvshmem`] where there is no library or it cannot start, [`Error::Driver`] where there is no driver or no
    /// such device; [`Error::Rendezvous`], [`Error::Missing`], [`Error::Lost`], [`Error::TooManyRanks`];
    /// [`Error::SharedFile`], also when another world whose ranks share a device does not end in time;
    /// [`Error::Stuck`].
    pub fn meet(
        seat: Seat,
        place: &rendezvous::Place,
        terms: &Terms,
        (device, config): (Ordinal, NvshmemConfig),
        deadline: Duration,
    ) -> Result<Arc<Self>, Error> {
        let call = "meet";
        apart::check(call)?;
        let nvshmem = nvshmem_sys::load(&config.search).map_err(Error::Nvshmem)?;
        // SAFETY: NVSHMEM has no threads yet, and the driver none that this call has started; Rust's own reads are
        // locked out. Of threads that the program may have in C we cannot know: it is told above what to do. Once set,
        // the variables stay, so nothing is written when another world begins.
        unsafe { nvshmem.without_proxy() };
        // A device that is not there must be found before others count on this rank.
        let context = context(device.0)?;
        let mut terms = terms.clone();
        let version = nvshmem.version();
        let [major, minor, patch] = [version.major, version.minor, version.patch].map(i32::unsigned_abs);
        terms.library = Library { major, minor, patch };
        let make = || nvshmem.unique_id().map(|id| id.bytes()).map_err(|error| error.to_string());
        let agreed = rendezvous::meet(seat, place, &terms, deadline, make)?;
        let id = UniqueId::from_bytes(agreed.id).map_err(Error::Nvshmem)?;
        let (me, world) = (seat.me(), seat.world());
        let name = format!("symm-buffer-{:016x}", hash(&agreed.id));
        let place = Place { folder: config.shared_folder.clone(), name: format!("{name}-start") };
        let (block, vigil) = join(me, Sizes { world, signals: 1 }, &place, deadline)?;
        let apart = Apart { me, nvshmem, context: context.clone(), vigil };
        let turn = sharing::claim(call, &apart, (&block, &config.shared_folder), Deadline::after(deadline))?;
        let size = u32::try_from(world.size()).unwrap_or(u32::MAX);
        let start = move || {
            // SAFETY: the rendezvous has made sure that every rank of the world is there once, with this id and version.
            unsafe { nvshmem.init(nvshmem_sys::Seat { pe: me.0, world: size }, &id) }.map_err(Error::Nvshmem)
        };
        let session = Arc::new(Mutex::new(apart.run(call, deadline, start)?));
        let groups = AtomicU32::new(0);
        Ok(Arc::new(Self { session, apart, context, config, me, world, block, turn, name, groups }))
    }

    /// The device's context.
    pub const fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// NVSHMEM itself, for what the fabric does not do: its calls on streams, teams, registration. One thread at a time.
    ///
    /// # Errors
    /// [`Error::Stuck`] when it has not come back from an earlier call.
    pub fn with_session<R>(&self, body: impl FnOnce(&Session) -> R) -> Result<R, Error> {
        let call = "with_session";
        apart::check(call)?;
        let look = || self.session.try_lock();
        let session = poll_until(Deadline::after(self.config.patience), look).map_err(|expired| {
            Error::Stuck { call, inside: "another thread's call", waited: expired.waited }
        })?;
        Ok(body(&session.value))
    }

    /// Runs a collective of NVSHMEM's own, to which all ranks have come.
    ///
    /// # Errors
    /// What `work` says, [`Error::Lost`], [`Error::Stuck`].
    pub(super) fn collective<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&Session) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let session = self.session.clone();
        self.apart.run(call, self.config.patience, move || work(&session.lock()))
    }

    /// A group of all ranks. Collective; a process may make several, all ranks in the same order.
    ///
    /// # Errors
    /// [`Error::SharedFile`], [`Error::TooManyRanks`], [`Error::Missing`], [`Error::Driver`], [`Error::Nvshmem`],
    /// [`Error::Unreachable`], [`Error::Lost`], [`Error::Stuck`].
    pub fn fabric(self: &Arc<Self>, deadline: Duration) -> Result<NvshmemFabric, Error> {
        let (me, signals) = (self.me, self.config.signals as usize);
        let (block, vigil) = join(me, Sizes { world: self.world, signals }, &self.place(), deadline)?;
        // SAFETY: the node keeps the mapping as long as the registration, and the fabric keeps the node for ever when
        // work may still use it.
        let registered = unsafe { Registered::new(&self.context, block.memory()) }?;
        let node = Arc::new(Node::new(me, block, vigil, registered));
        let words = self.collective("fabric", move |session| Chunk::new(session, me, signals * ALIGNMENT))?;
        self.context.bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: the chunk has just been allocated with this length, and nobody uses it yet.
        let zeroed = unsafe { result::memset_d8_sync(words.address(me, 0), 0, signals * ALIGNMENT) };
        zeroed.named("cuMemsetD8")?;
        self.context.synchronize().named("cuCtxSynchronize")?;
        // Nobody posts before all words are zero.
        meet(&node, Ask::Barrier, deadline)?;
        NvshmemFabric::start(self.clone(), node, words)
    }

    /// Ends NVSHMEM in this process. Collective, after all groups are closed; then another world may begin.
    ///
    /// # Errors
    /// [`Error::InUse`] while a group is there; [`Error::Missing`] naming a rank that does not come: then NVSHMEM is
    /// not ended, as its own end would wait for ever. [`Error::Lost`] or [`Error::Stuck`] when that happens on the way.
    pub fn finalize(self: Arc<Self>, deadline: Duration) -> Result<(), Error> {
        let call = "finalize";
        let world = Arc::into_inner(self).ok_or(Error::InUse { call, what: "a group of this world" })?;
        apart::check(call)?;
        join(world.me, Sizes { world: world.world, signals: 1 }, &world.place(), deadline)?;
        let patience = world.config.patience;
        let session = Arc::into_inner(world.session).ok_or(Error::InUse { call, what: "NVSHMEM" })?;
        let end = move || {
            // SAFETY: all ranks have come here; groups drain their streams when they are closed.
            unsafe { session.into_inner().finalize() };
            Ok(())
        };
        world.apart.run(call, patience, end)?;
        if let Some(turn) = world.turn {
            turn.end(call, &world.apart, &world.block);
        }
        Ok(())
    }

    fn place(&self) -> Place {
        let group = self.groups.fetch_add(1, Ordering::Relaxed);
        Place { folder: self.config.shared_folder.clone(), name: format!("{}-{group}", self.name) }
    }
}

/// Meets before there is a fabric.
fn meet(node: &Node, ask: Ask, deadline: Duration) -> Result<(), Error> {
    let deadline = Deadline::after(deadline);
    let round = Round::enter(&node.block, Hall::Collective, node.me, ask, || ());
    match round.wait(deadline, || None)? {
        Outcome::Missing(missing) => {
            Err(Error::Missing { call: "fabric", me: node.me, missing, waited: deadline.waited() })
        }
        _ => Ok(()),
    }
}

/// FNV-1a, 64 bits: the same on all ranks.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
