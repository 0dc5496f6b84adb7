//! A group of ranks that run context-parallel attention together.
use std::time::Duration;

use cp_overlap::exec::{Overlap, Session};
use fm3_kernels::FlashMask;
use symm_buffer::host::HostFabric;
use symm_buffer::{Bytes, Copy2d, Corner, Fabric, Pe, Put, Span, World};

use xxhash_rust::xxh3::xxh3_64;

use crate::{Config, CpShape, Error, Prepared, Sharding};

/// This rank's place in a world, on some backend. The backend is a value: nothing above it changes.
#[non_exhaustive]
pub enum Member {
    /// Ranks are threads of this process; see [`symm_buffer::host`].
    Host(HostFabric),
}

impl From<HostFabric> for Member {
    fn from(fabric: HostFabric) -> Self {
        Self::Host(fabric)
    }
}

/// One rank's membership. A process may hold several; calls of one group come in the same order on all of its ranks.
pub struct CpGroup {
    pub(crate) session: Session<HostFabric>,
    config: Config,
}

impl CpGroup {
    /// Joins and makes sure that everybody has the same settings. Collective.
    ///
    /// # Errors
    /// [`Error::ConfigMismatch`] naming the setting and both values, [`Error::Fabric`] when a rank does not come.
    pub fn join(member: impl Into<Member>, config: Config) -> Result<Self, Error> {
        let Member::Host(fabric) = member.into();
        agree(&fabric, &config)?;
        let session = Session::new(fabric, config.settings())?;
        Ok(Self { session, config })
    }

    /// This rank.
    pub fn rank(&self) -> Pe {
        self.session.fabric().me()
    }

    /// All ranks.
    pub fn world(&self) -> World {
        self.session.fabric().world()
    }

    /// The settings that all ranks agreed on.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Plans calls with the *global* `mask` (rows and columns in sequence order): folds it to this rank's rows, finds
    /// who needs what, orders the pieces. No communication, no waiting: it may run ahead on another thread.
    ///
    /// # Errors
    /// [`Error::Overlap`] or [`Error::Kernels`] when mask, shape and sharding do not fit each other or the group.
    pub fn prepare(&self, mask: &FlashMask, shape: CpShape, sharding: &Sharding) -> Result<Prepared, Error> {
        if sharding.world() != self.world() {
            return Err(Error::WrongGroup {
                call: "CpGroup::prepare",
                prepared_rank: self.rank(),
                prepared_world: sharding.world().size(),
                rank: self.rank(),
                world: self.world().size(),
            });
        }
        Prepared::new(mask, shape, sharding, (self.rank(), &self.config))
    }

    /// Meets all ranks. Collective; calls need none between them.
    ///
    /// # Errors
    /// [`Error::Fabric`] naming a rank that did not come.
    pub fn barrier(&self) -> Result<(), Error> {
        Ok(self.session.fabric().barrier(self.session.settings().collective_deadline())?)
    }

    /// After a failed call: meets the live ranks, drops what was queued. Collective; the next call works again.
    ///
    /// # Errors
    /// [`Error::Overlap`] naming a rank that did not come.
    pub fn recover(&mut self) -> Result<(), Error> {
        Ok(self.session.recover()?)
    }

    /// The failure, if any, that keeps the group from working until [`CpGroup::recover`].
    ///
    /// # Errors
    /// That failure.
    pub fn status(&self) -> Result<(), Error> {
        Ok(self.session.fabric().status()?)
    }

    /// Gives the symmetric memory back. Collective; a group that is only dropped leaks it.
    ///
    /// # Errors
    /// [`Error::Overlap`] when a rank does not come.
    pub fn close(self) -> Result<(), Error> {
        Ok(self.session.close()?)
    }
}

/// Names and values of the settings that must be equal everywhere.
fn agreed_fields(config: &Config) -> [(&'static str, u64); 4] {
    let millis = u64::try_from(config.deadline.as_millis()).unwrap_or(u64::MAX);
    [
        ("deadline_ms", millis),
        ("overlap", u64::from(config.overlap == Overlap::On)),
        ("sync_each_stage", u64::from(config.sync_each_stage)),
        ("tunables", xxh3_64(format!("{:?}", config.tunables).as_bytes())),
    ]
}

/// Every rank shows its settings to every other one.
fn agree(fabric: &HostFabric, config: &Config) -> Result<(), Error> {
    const SLOT: usize = 128;
    // Settings may differ in the deadline itself, so the exchange has one of its own.
    const PATIENCE: Duration = Duration::from_secs(30);
    let (me, world) = (fabric.me(), fabric.world());
    let mine = agreed_fields(config);
    let words = mine.map(|(_, value)| value);
    let len = size_of_val(&words);
    let region = fabric.alloc(Bytes(world.size() * SLOT), PATIENCE)?;
    let at = |pe: Pe| Span { region, offset: pe.index() * SLOT, len };
    fabric.store(at(me), bytemuck::cast_slice(&words))?;
    let stream = fabric.stream("join")?;
    let corner = Corner { region, offset: at(me).offset, pitch: SLOT };
    let copy = Copy2d { src: corner, dst: corner, width: len, rows: 1 };
    for to in world.after(me) {
        fabric.put_signal(&stream, Put { to, copies: &[copy], post: None })?;
    }
    fabric.synchronize(&stream, PATIENCE)?;
    fabric.barrier(PATIENCE)?;
    let mut differs = None;
    for peer in world.after(me) {
        let bytes = fabric.load(at(peer))?;
        let theirs: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
        let found = mine.iter().zip(theirs).find(|((_, mine), theirs)| mine != theirs);
        differs = differs.or(found.map(|((field, mine), theirs)| (peer, *field, *mine, theirs)));
    }
    fabric.free(region, PATIENCE)?;
    match differs {
        None => Ok(()),
        Some((peer, field, mine, theirs)) => {
            Err(Error::ConfigMismatch { rank: me, peer, field, mine, theirs })
        }
    }
}
