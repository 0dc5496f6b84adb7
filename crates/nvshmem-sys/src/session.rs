//! NVSHMEM while it runs: from the meeting of all ranks to `finalize`.
use std::alloc::Layout;
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use crate::sys::{Api, types, uniqueid_initializer};
use crate::{Error, Nvshmem, result};

/// How far the library is in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Status {
    /// Nothing was called yet.
    NotInitialized,
    /// Ranks have met; there is no heap, for no CUDA device was current.
    Bootstrapped,
    /// All of it works, with a GPU of its own.
    Initialized,
    /// Several ranks share a GPU, with less than full support (no MPS).
    LimitedSharing,
    /// Several ranks share a GPU, with full support.
    FullSharing,
    /// Something that the headers do not know.
    Unknown,
}

impl Status {
    pub(crate) fn from_code(code: c_int) -> Self {
        match types::nvshmemx_init_status_t::try_from(code) {
            Ok(types::NVSHMEM_STATUS_NOT_INITIALIZED) => Self::NotInitialized,
            Ok(types::NVSHMEM_STATUS_IS_BOOTSTRAPPED) => Self::Bootstrapped,
            Ok(types::NVSHMEM_STATUS_IS_INITIALIZED) => Self::Initialized,
            Ok(types::NVSHMEM_STATUS_LIMITED_MPG) => Self::LimitedSharing,
            Ok(types::NVSHMEM_STATUS_FULL_MPG) => Self::FullSharing,
            _ => Self::Unknown,
        }
    }
}

/// The 128 bytes by which ranks find each other. One rank makes it, all others get it by a way of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueId([u8; 128]);

impl UniqueId {
    /// From the bytes that another rank's [`UniqueId::bytes`] gave.
    ///
    /// # Errors
    /// [`Error::NotUniqueId`] when they do not start as a unique id does.
    pub fn from_bytes(bytes: [u8; 128]) -> Result<Self, Error> {
        let found = c_int::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let wanted = uniqueid_initializer().version;
        if found == wanted { Ok(Self(bytes)) } else { Err(Error::NotUniqueId { found, wanted }) }
    }

    /// To be sent to other ranks.
    pub fn bytes(&self) -> [u8; 128] {
        self.0
    }

    fn from_c(id: &types::nvshmemx_uniqueid_t) -> Self {
        let mut bytes = [0; 128];
        bytes[..4].copy_from_slice(&id.version.to_ne_bytes());
        for (byte, from) in bytes[4..].iter_mut().zip(id.internal) {
            [*byte] = from.to_ne_bytes();
        }
        Self(bytes)
    }

    fn to_c(self) -> types::nvshmemx_uniqueid_t {
        let mut id = uniqueid_initializer();
        for (to, byte) in id.internal.iter_mut().zip(&self.0[4..]) {
            *to = std::ffi::c_char::from_ne_bytes([*byte]);
        }
        id
    }
}

/// Who I am among how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// 0 .. world.
    pub pe: u32,
    /// At least 1.
    pub world: u32,
}

/// A running NVSHMEM; at most one per process. One thread at a time may use it. Dropping it does nothing: the end is
/// collective, so it is a call, [`Session::finalize`].
#[derive(Debug)]
pub struct Session {
    api: &'static Api,
    seat: Seat,
    /// Calls from two threads at once are not allowed.
    _one_thread_at_a_time: PhantomData<Cell<()>>,
}

/// Held while the library starts.
static START: Mutex<()> = Mutex::new(());

impl Nvshmem {
    /// How far the library is.
    pub fn status(&self) -> Status {
        // SAFETY: `api` came from the loader, so its functions are NVSHMEM's.
        unsafe { result::init::status(self.api) }
    }

    /// A new unique id, for one rank to make and to give to all. It needs no GPU and opens a socket on the interface
    /// that `NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME` names, or the first that is up.
    ///
    /// # Errors
    /// [`Error::Call`] when no interface can be used.
    pub fn unique_id(&self) -> Result<UniqueId, Error> {
        let _start = START.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as in `status`.
        Ok(UniqueId::from_c(&unsafe { result::init::get_uniqueid(self.api) }?))
    }

    /// Meets all ranks and makes the heap on the current CUDA device. Collective, and without a deadline of its own.
    ///
    /// # Errors
    /// [`Error::NoSuchPe`], [`Error::Started`], [`Error::Call`]; [`Error::NoDevice`] when the ranks have met but no
    /// device is current.
    ///
    /// # Safety
    /// Every rank of the world must come, each with its own number, all with the same world and the same id: otherwise
    /// the library ends the process or waits for ever. Let the ranks agree on that by a rendezvous before.
    pub unsafe fn init(&self, seat: Seat, id: &UniqueId) -> Result<Session, Error> {
        let call = "Nvshmem::init";
        let outside = Error::NoSuchPe { call, pe: seat.pe, world: seat.world };
        let (Ok(rank), Ok(world)) = (c_int::try_from(seat.pe), c_int::try_from(seat.world)) else {
            return Err(outside);
        };
        if rank >= world {
            return Err(outside);
        }
        let _start = START.lock().unwrap_or_else(PoisonError::into_inner);
        if self.status() > Status::Bootstrapped {
            return Err(Error::Started { call });
        }
        let at = result::init::Seat { rank, world };
        // SAFETY: the rank is below the world; the caller vouches for the other ranks.
        unsafe { result::init::init_with_uniqueid(self.api, at, &id.to_c()) }?;
        if self.status() <= Status::Bootstrapped {
            return Err(Error::NoDevice { call });
        }
        Ok(Session { api: self.api, seat, _one_thread_at_a_time: PhantomData })
    }
}

impl Session {
    /// The functions, for what is only in [`result`]: copies and signals on streams, teams, registration, modules.
    pub fn api(&self) -> &'static Api {
        self.api
    }

    /// Who I am among how many.
    pub fn seat(&self) -> Seat {
        self.seat
    }

    /// Device memory at the same place of every rank's heap. Collective.
    ///
    /// # Errors
    /// [`Error::NoMemory`].
    ///
    /// # Safety
    /// Every rank must ask for the same, in the same order of collective calls.
    pub unsafe fn alloc(&self, layout: Layout) -> Result<NonNull<c_void>, Error> {
        // SAFETY: a session is an initialised library; the caller vouches for the other ranks.
        let memory = unsafe { result::heap::align(self.api, layout) };
        memory.ok_or(Error::NoMemory { call: "Session::alloc", bytes: layout.size() })
    }

    /// Gives memory back. Collective.
    ///
    /// # Safety
    /// It must come from [`Session::alloc`] and be unused, by kernels and peers too; every rank must call this.
    pub unsafe fn free(&self, memory: NonNull<c_void>) {
        // SAFETY: the caller vouches for it.
        unsafe { result::heap::free(self.api, memory) }
    }

    /// Where this address of my heap is in that of a peer, if kernels here can reach it by loads and stores.
    ///
    /// # Errors
    /// [`Error::NoSuchPe`].
    pub fn peer_address(&self, address: NonNull<c_void>, pe: u32) -> Result<Option<NonNull<c_void>>, Error> {
        let Seat { world, .. } = self.seat;
        let outside = Error::NoSuchPe { call: "Session::peer_address", pe, world };
        let rank = c_int::try_from(pe).ok().filter(|_| pe < world).ok_or(outside)?;
        // SAFETY: the rank is in the world, and the address is only looked up.
        Ok(unsafe { result::heap::ptr(self.api, address.as_ptr(), rank) })
    }

    /// Ends NVSHMEM in this process. Collective: with a dead rank it never returns, so do not call it then.
    ///
    /// # Safety
    /// No work on a stream may still use the heap, and every rank must call this.
    pub unsafe fn finalize(self) {
        // SAFETY: a session is an initialised library; the caller vouches for the rest.
        unsafe { result::init::finalize(self.api) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unique_id_comes_through_as_it_is_and_other_bytes_do_not() {
        let mut bytes: [u8; 128] = std::array::from_fn(|at| u8::try_from(at * 2).unwrap());
        let error = UniqueId::from_bytes(bytes).unwrap_err();
        assert!(matches!(error, Error::NotUniqueId { wanted: 0x1_0080, .. }), "{error}");
        bytes[..4].copy_from_slice(&0x1_0080_i32.to_ne_bytes());
        let id = UniqueId::from_bytes(bytes).unwrap();
        assert_eq!(id.bytes(), bytes);
        assert_eq!(UniqueId::from_c(&id.to_c()), id);
    }

    #[test]
    fn status_codes_are_the_headers() {
        let status = [0, 1, 2, 3, 4, 5, -1].map(Status::from_code);
        let wanted = [Status::NotInitialized, Status::Bootstrapped, Status::Initialized];
        assert_eq!(status[..3], wanted);
        assert_eq!(
            status[3..],
            [Status::LimitedSharing, Status::FullSharing, Status::Unknown, Status::Unknown]
        );
        assert!(wanted.is_sorted());
    }
}
