//! Start, end, and what may be asked before.
use std::ffi::c_char;

use super::control::{self, ID_VERSION, UniqueId};
use super::{VERSION, give_up, proxy, world};
use crate::{c, config};

/// `NVSHMEMX_INIT_WITH_UNIQUEID`.
const WITH_UNIQUEID: u32 = 8;

/// `NVSHMEMX_ERROR_INVALID_VALUE` and `NVSHMEMX_ERROR_INTERNAL`.
const INVALID_VALUE: i32 = 1;
const INTERNAL: i32 = 7;

/// `nvshmemx_uniqueid_args_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueIdArguments {
    version: i32,
    id: *const UniqueId,
    rank: i32,
    world: i32,
}

/// `nvshmemx_init_attr_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attributes {
    version: i32,
    communicator: usize,
    arguments_version: i32,
    unique_id: UniqueIdArguments,
    content: [c_char; 96],
}

const _: () = assert!(size_of::<UniqueIdArguments>() == 24 && size_of::<Attributes>() == 144);

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_vendor_get_version_info(major: *mut i32, minor: *mut i32, patch: *mut i32) {
    c::out_if_wanted(major, VERSION.0);
    c::out_if_wanted(minor, VERSION.1);
    c::out_if_wanted(patch, VERSION.2);
}

/// The version of OpenSHMEM's standard that NVSHMEM 3.4 follows.
#[unsafe(no_mangle)]
extern "C" fn nvshmem_info_get_version(major: *mut i32, minor: *mut i32) {
    c::out_if_wanted(major, 1);
    c::out_if_wanted(minor, 3);
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_info_get_name(name: *mut c_char) {
    // NVSHMEM_MAX_NAME_LEN; null is ignored.
    _ = c::out_text(name, 256, "NVSHMEM v3.4.5 (gpu-sim)");
}

/// 0 nothing, 1 ranks have met, 2 there is a heap, 3 the same with several ranks on one GPU.
#[unsafe(no_mangle)]
extern "C" fn nvshmemx_init_status() -> i32 {
    match world::get() {
        None => 0,
        Some(world) if world.made_heap().is_none() => 1,
        Some(world) if config::one_gpu() && world.count > 1 => 3,
        Some(_) => 2,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_get_uniqueid(id: *mut UniqueId) -> i32 {
    match control::create() {
        Ok(made) if c::out(id, made).is_ok() => 0,
        Ok(_) => INVALID_VALUE,
        Err(_) => INTERNAL,
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_set_attr_uniqueid_args(
    rank: i32,
    world: i32,
    id: *const UniqueId,
    attributes: *mut Attributes,
) -> i32 {
    let Ok(mut set) = c::read(attributes) else { return INVALID_VALUE };
    set.unique_id.id = id;
    (set.unique_id.rank, set.unique_id.world) = (rank, world);
    if c::out(attributes, set).is_ok() { 0 } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_hostlib_init_attr(flags: u32, attributes: *const Attributes) -> i32 {
    let Ok(attributes) = c::read(attributes) else { return INVALID_VALUE };
    if flags & WITH_UNIQUEID == 0 {
        super::not_simulated("initialisation without a unique id");
    }
    let UniqueIdArguments { id, rank, world, .. } = attributes.unique_id;
    let Ok(id) = c::read(id) else { return INVALID_VALUE };
    if id.version != ID_VERSION {
        return INVALID_VALUE;
    }
    match world::meet(&id, rank, world) {
        // Without a device there is no heap yet, and that is no error.
        Ok(world) => {
            if world.heap().is_some() {
                proxy::start();
            }
        }
        Err(why) => give_up(&format!("rank {rank} of {world} cannot meet the others: {why}")),
    }
    0
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_hostlib_finalize() {
    world::end();
    proxy::stop();
}
