//! Teams: parts of the world with numbers of their own, and where all of a team or of the world meet on the host
//! ([teams](https://docs.nvidia.com/nvshmem/api/gen/api/teams.html),
//! [collectives](https://docs.nvidia.com/nvshmem/api/gen/api/collectives.html)).
use std::ffi::c_int;
use std::ptr;

use super::checked;
use crate::Error;
use crate::sys::Api;
use crate::sys::types::{NVSHMEM_TEAM_INVALID, nvshmem_team_t};

/// Every `stride`-th rank of the parent from `start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strided {
    /// First rank, counted in the parent.
    pub start: c_int,
    /// Distance of two neighbours.
    pub stride: c_int,
    /// How many.
    pub size: c_int,
}

/// My number in a team; `None` when I am not in it.
///
/// # Safety
/// The library must be initialised.
pub unsafe fn my_pe(api: &Api, team: nvshmem_team_t) -> Option<c_int> {
    // SAFETY: a team that does not exist gives -1.
    not_negative(unsafe { (api.nvshmem_team_my_pe)(team) })
}

/// How many ranks a team has; `None` when I am not in it.
///
/// # Safety
/// The library must be initialised.
pub unsafe fn n_pes(api: &Api, team: nvshmem_team_t) -> Option<c_int> {
    // SAFETY: a team that does not exist gives -1.
    not_negative(unsafe { (api.nvshmem_team_n_pes)(team) })
}

/// The number in `to` of the rank that is `pe` in `from`; `None` when it is not in both.
///
/// # Safety
/// The library must be initialised, and I be in both.
pub unsafe fn translate_pe(api: &Api, from: nvshmem_team_t, pe: c_int, to: nvshmem_team_t) -> Option<c_int> {
    // SAFETY: the caller vouches for the teams; a rank that is not there gives -1.
    not_negative(unsafe { (api.nvshmem_team_translate_pe)(from, pe, to) })
}

/// Makes a team of some ranks of another. Collective over the parent; `None` for those who are not in the new one.
///
/// # Errors
/// [`Error::Call`].
///
/// # Safety
/// The library must be initialised; the ranks must be ranks of the parent, the same in everybody's call.
pub unsafe fn split_strided(
    api: &Api,
    parent: nvshmem_team_t,
    part: Strided,
) -> Result<Option<nvshmem_team_t>, Error> {
    let mut team: nvshmem_team_t = NVSHMEM_TEAM_INVALID;
    let Strided { start, stride, size } = part;
    let split = api.nvshmem_team_split_strided;
    // SAFETY: no configuration is given, and the mask says so; the new team's pointer is live and writable.
    let code = unsafe { split(parent, start, stride, size, ptr::null(), 0, &raw mut team) };
    checked("nvshmem_team_split_strided", code)?;
    Ok((team != NVSHMEM_TEAM_INVALID).then_some(team))
}

/// Ends a team. Collective over it.
///
/// # Safety
/// The team must be one that was split off, and nothing may still use it.
pub unsafe fn destroy(api: &Api, team: nvshmem_team_t) {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmem_team_destroy)(team) }
}

/// The host's threads of a team meet; copies may still be under way. Collective.
///
/// # Errors
/// [`Error::Call`].
///
/// # Safety
/// The library must be initialised, and every rank of the team call this. It has no deadline.
pub unsafe fn sync(api: &Api, team: nvshmem_team_t) -> Result<(), Error> {
    // SAFETY: the caller vouches for it.
    checked("nvshmem_team_sync", unsafe { (api.nvshmem_team_sync)(team) })
}

/// As [`sync`], and copies of before are done.
///
/// # Errors
/// [`Error::Call`].
///
/// # Safety
/// As [`sync`].
pub unsafe fn barrier(api: &Api, team: nvshmem_team_t) -> Result<(), Error> {
    // SAFETY: the caller vouches for it.
    checked("nvshmem_barrier", unsafe { (api.nvshmem_barrier)(team) })
}

/// As [`barrier`], of the whole world.
///
/// # Safety
/// As [`sync`].
pub unsafe fn barrier_all(api: &Api) {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmem_barrier_all)() }
}

fn not_negative(number: c_int) -> Option<c_int> {
    (number >= 0).then_some(number)
}
