//! Start and end: unique id, attributes, status
//! ([setup, exit and query](https://docs.nvidia.com/nvshmem/api/gen/api/setup.html)).
use std::ffi::{c_int, c_uint};

use super::checked;
use crate::sys::types::{NVSHMEMX_INIT_WITH_UNIQUEID, nvshmemx_init_attr_t, nvshmemx_uniqueid_t};
use crate::sys::{Api, init_attr_initializer, uniqueid_initializer};
use crate::{Error, Status};

/// My number, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// 0 .. world.
    pub rank: c_int,
    /// At least 1.
    pub world: c_int,
}

/// A new unique id. It names a socket of this process, by which the ranks will meet; no GPU is needed.
///
/// # Errors
/// [`Error::Call`] when no network interface can be used.
///
/// # Safety
/// The functions of `api` must be NVSHMEM's.
pub unsafe fn get_uniqueid(api: &Api) -> Result<nvshmemx_uniqueid_t, Error> {
    let mut id = uniqueid_initializer();
    // SAFETY: the pointer is to a live, writable id whose version is set.
    let code = unsafe { (api.nvshmemx_get_uniqueid)(&raw mut id) };
    checked("nvshmemx_get_uniqueid", code)?;
    Ok(id)
}

/// Meets all ranks by a unique id, and makes the heap if a CUDA device is current. Collective.
///
/// # Errors
/// [`Error::Call`].
///
/// # Safety
/// The functions of `api` must be NVSHMEM's. `seat.rank` must be below `seat.world`, and every rank of the same world
/// must come with its own number and the same id: the library ends the process or waits for ever otherwise.
pub unsafe fn init_with_uniqueid(api: &Api, seat: Seat, id: &nvshmemx_uniqueid_t) -> Result<(), Error> {
    let mut attr: nvshmemx_init_attr_t = init_attr_initializer();
    let attr = &raw mut attr;
    let set = api.nvshmemx_set_attr_uniqueid_args;
    // SAFETY: both pointers are to live values; the attributes keep the one to the id, which outlives them.
    let code = unsafe { set(seat.rank, seat.world, id, attr) };
    checked("nvshmemx_set_attr_uniqueid_args", code)?;
    let flags = NVSHMEMX_INIT_WITH_UNIQUEID as c_uint;
    // SAFETY: the attributes are initialised and live; the caller vouches for the world.
    checked("nvshmemx_hostlib_init_attr", unsafe { (api.nvshmemx_hostlib_init_attr)(flags, attr) })
}

/// How far the library is.
///
/// # Safety
/// The functions of `api` must be NVSHMEM's.
pub unsafe fn status(api: &Api) -> Status {
    // SAFETY: it reads a variable of the library.
    Status::from_code(unsafe { (api.nvshmemx_init_status)() })
}

/// Ends the library's work. Collective: it waits for all ranks.
///
/// # Safety
/// The library must be initialised, no work on a stream may still use its heap, and every rank must call it.
pub unsafe fn finalize(api: &Api) {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmemx_hostlib_finalize)() }
}

/// My number.
///
/// # Safety
/// The library must be initialised.
pub unsafe fn my_pe(api: &Api) -> c_int {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmem_my_pe)() }
}

/// How many there are.
///
/// # Safety
/// The library must be initialised.
pub unsafe fn n_pes(api: &Api) -> c_int {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmem_n_pes)() }
}
