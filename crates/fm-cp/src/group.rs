//! A group of ranks that run context-parallel attention together.
use std::time::Duration;

use cp_overlap::exec::{Overlap, Session};
use fm3_kernels::FlashMask;
#[cfg(feature = "nvshmem")]
use fm3_kernels::cuda::Attention;
use symm_buffer::host::HostFabric;
#[cfg(feature = "nvshmem")]
use symm_buffer::nvshmem::NvshmemFabric;
use symm_buffer::{Bytes, Copy2d, Corner, Fabric, Pe, Put, Span, World};

use xxhash_rust::xxh3::xxh3_64;

#[cfg(feature = "nvshmem")]
use crate::device::DeviceGroup;
use crate::{Config, CpShape, Error, Prepared, Sharding};

/// This rank's place in a world, on some backend. The backend is a value: nothing above it changes.
#[non_exhaustive]
#[cfg_attr(
    feature = "nvshmem",
    expect(clippy::large_enum_variant, reason = "one per group, and it is taken apart at once")
)]
pub enum Member {
    /// Ranks are threads of this process; see [`symm_buffer::host`].
    Host(HostFabric),
    /// Ranks are processes with a GPU each; see [`symm_buffer::nvshmem`].
    #[cfg(feature = "nvshmem")]
    Nvshmem(NvshmemFabric),
}

impl From<HostFabric> for Member {
    fn from(fabric: HostFabric) -> Self {
        Self::Host(fabric)
    }
}

#[cfg(feature = "nvshmem")]
impl From<NvshmemFabric> for Member {
    fn from(fabric: NvshmemFabric) -> Self {
        Self::Nvshmem(fabric)
    }
}

/// One rank's membership. A process may hold several; calls of one group come in the same order on all of its ranks.
pub struct CpGroup {
    backend: Backend,
    config: Config,
}

enum Backend {
    Host(Session<HostFabric>),
    #[cfg(feature = "nvshmem")]
    Device(DeviceGroup),
}

/// The same code for the fabric of any backend.
macro_rules! on_fabric {
    ($group:expr, $fabric:ident => $body:expr) => {
        match &$group.backend {
            Backend::Host(session) => {
                let $fabric = session.fabric();
                $body
            }
            #[cfg(feature = "nvshmem")]
            Backend::Device(device) => {
                let $fabric = device.session.fabric();
                $body
            }
        }
    };
}

impl CpGroup {
    /// Joins and makes sure that everybody has the same settings. Collective. A group on GPUs loads its kernels.
    ///
    /// # Errors
    /// [`Error::ConfigMismatch`] naming the setting and both values, [`Error::Fabric`] when a rank does not come;
    /// [`Error::Kernels`] when the device or its kernels are missing.
    pub fn join(member: impl Into<Member>, config: Config) -> Result<Self, Error> {
        let backend = match member.into() {
            Member::Host(fabric) => {
                agree(&fabric, &config)?;
                Backend::Host(Session::new(fabric, config.settings())?)
            }
            #[cfg(feature = "nvshmem")]
            Member::Nvshmem(fabric) => return Self::join_device(fabric, config, None),
        };
        Ok(Self { backend, config })
    }

    /// As [`CpGroup::join`] on GPUs with kernels that are loaded already, so that several groups share them.
    ///
    /// # Errors
    /// As [`CpGroup::join`].
    #[cfg(feature = "nvshmem")]
    pub fn join_with(fabric: NvshmemFabric, config: Config, attention: Attention) -> Result<Self, Error> {
        Self::join_device(fabric, config, Some(attention))
    }

    #[cfg(feature = "nvshmem")]
    fn join_device(
        fabric: NvshmemFabric,
        config: Config,
        attention: Option<Attention>,
    ) -> Result<Self, Error> {
        agree(&fabric, &config)?;
        let device = DeviceGroup::new(fabric, config.settings(), (attention, config.measure))?;
        Ok(Self { backend: Backend::Device(device), config })
    }

    /// This rank.
    pub fn rank(&self) -> Pe {
        on_fabric!(self, fabric => fabric.me())
    }

    /// All ranks.
    pub fn world(&self) -> World {
        on_fabric!(self, fabric => fabric.world())
    }

    /// The settings. All ranks have agreed on them, but on [`Config::measure`].
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Whether later enqueued calls of this rank take times, as [`Config::measure`] says of all. The other ranks need not
    /// know. Calls that wait always tell what they cost.
    pub const fn measure(&mut self, measure: bool) {
        self.config.measure = measure;
        match &mut self.backend {
            Backend::Host(_) => {}
            #[cfg(feature = "nvshmem")]
            Backend::Device(device) => device.measure = measure,
        }
    }

    /// Plans calls with the *global* `mask` (rows and columns in sequence order): folds it to this rank's rows, finds
    /// who needs what, orders the pieces. No communication. On GPUs the tables are uploaded and waited for, on a stream of
    /// the group's own.
    ///
    /// # Errors
    /// [`Error::Overlap`] or [`Error::Kernels`] when mask, shape and sharding do not fit each other or the group, or on
    /// GPUs not what the kernels take.
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
        let prepared = Prepared::new(mask, shape, sharding, (self.rank(), &self.config))?;
        match &self.backend {
            Backend::Host(_) => prepared.with_blocks(),
            #[cfg(feature = "nvshmem")]
            Backend::Device(device) => {
                let tables = device.prepare(prepared.plan(), prepared.mask())?;
                Ok(prepared.with_device(tables))
            }
        }
    }

    /// Meets all ranks. Collective; calls need none between them.
    ///
    /// # Errors
    /// [`Error::Fabric`] naming a rank that did not come.
    pub fn barrier(&self) -> Result<(), Error> {
        let deadline = self.config.settings().collective_deadline();
        Ok(on_fabric!(self, fabric => fabric.barrier(deadline))?)
    }

    /// After a failed call: meets the live ranks, drops what was queued. Collective; the next call works again.
    ///
    /// # Errors
    /// [`Error::Overlap`] naming a rank that did not come.
    pub fn recover(&mut self) -> Result<(), Error> {
        match &mut self.backend {
            Backend::Host(session) => Ok(session.recover()?),
            #[cfg(feature = "nvshmem")]
            Backend::Device(device) => device.recover(),
        }
    }

    /// The failure, if any, that keeps the group from working until [`CpGroup::recover`].
    ///
    /// # Errors
    /// That failure.
    pub fn status(&self) -> Result<(), Error> {
        match &self.backend {
            Backend::Host(session) => Ok(session.fabric().status()?),
            #[cfg(feature = "nvshmem")]
            Backend::Device(device) => device.status(),
        }
    }

    /// Gives the symmetric memory back. Collective; a group that is only dropped leaks it. Calls that were enqueued are
    /// waited for.
    ///
    /// # Errors
    /// [`Error::Overlap`] when a rank does not come; [`Error::Fabric`] when another thread waits for a call.
    pub fn close(self) -> Result<(), Error> {
        match self.backend {
            Backend::Host(session) => Ok(session.close()?),
            #[cfg(feature = "nvshmem")]
            Backend::Device(device) => device.close(self.config.settings().collective_deadline()),
        }
    }

    /// The session of a group whose ranks are threads.
    #[cfg(feature = "nvshmem")]
    pub(crate) fn host(&mut self, call: &'static str) -> Result<&mut Session<HostFabric>, Error> {
        match &mut self.backend {
            Backend::Host(session) => Ok(session),
            Backend::Device(_) => Err(Error::WrongBackend {
                call,
                ranks: "processes with a GPU each",
                hint: "give device views to CpAttention::enqueue_forward",
            }),
        }
    }

    /// The session; there is no other backend.
    #[cfg(not(feature = "nvshmem"))]
    #[expect(clippy::unnecessary_wraps, reason = "with other backends there may be none")]
    pub(crate) const fn host(&mut self, _: &'static str) -> Result<&mut Session<HostFabric>, Error> {
        let Backend::Host(session) = &mut self.backend;
        Ok(session)
    }

    /// The device's end of a group on GPUs.
    #[cfg(feature = "nvshmem")]
    pub(crate) fn device(&mut self, call: &'static str) -> Result<&mut DeviceGroup, Error> {
        match &mut self.backend {
            Backend::Device(device) => Ok(device),
            Backend::Host(_) => Err(Error::WrongBackend {
                call,
                ranks: "threads of one process",
                hint: "give host views to CpAttention::forward",
            }),
        }
    }
}

/// Names and values of the settings that must be equal everywhere.
fn agreed_fields(config: &Config) -> [(&'static str, u64); 5] {
    let millis = u64::try_from(config.deadline.as_millis()).unwrap_or(u64::MAX);
    [
        ("deadline_ms", millis),
        ("overlap", u64::from(config.overlap == Overlap::On)),
        ("sync_each_stage", u64::from(config.sync_each_stage)),
        ("symmetric_bytes", config.symmetric_bytes.map_or(0, |bytes| bytes.0 as u64)),
        ("tunables", xxh3_64(format!("{:?}", config.tunables).as_bytes())),
    ]
}

/// Every rank shows its settings to every other one.
fn agree(fabric: &impl Fabric, config: &Config) -> Result<(), Error> {
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
