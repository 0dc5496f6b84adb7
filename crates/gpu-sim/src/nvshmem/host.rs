//! What hosts call: numbers, memory, barriers, registration.
use std::collections::BTreeSet;
use std::sync::Mutex;

use super::world::{self, World};
use super::{give_up, not_simulated};
use crate::table::lock;
use crate::{bytes, config};

/// Memory that the caller made known.
static REGISTERED: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

#[unsafe(no_mangle)]
extern "C" fn nvshmem_my_pe() -> i32 {
    world::get().map_or(-1, |world| i32::try_from(world.me).unwrap_or(-1))
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_n_pes() -> i32 {
    world::get().map_or(-1, |world| i32::try_from(world.count).unwrap_or(-1))
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_malloc(size: usize) -> usize {
    allocate("nvshmem_malloc", size, 1).unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_align(alignment: usize, size: usize) -> usize {
    allocate("nvshmem_align", size, alignment).unwrap_or(0)
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_calloc(count: usize, size: usize) -> usize {
    let Some(all) = count.checked_mul(size) else { return 0 };
    let Some(address) = allocate("nvshmem_calloc", all, 1) else { return 0 };
    bytes::fill(address, all, 0);
    // Nobody may write before it is zero.
    world::needed("nvshmem_calloc").barrier();
    address
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_free(address: usize) {
    let world = world::needed("nvshmem_free");
    world.barrier();
    if address != 0 && !world.made_heap().is_some_and(|heap| heap.free(address)) {
        world.control.fail("nvshmem_free of what is no block of the heap");
    }
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_ptr(address: usize, pe: i32) -> usize {
    let world = world::needed("nvshmem_ptr");
    let place = || world.made_heap()?.at(address, usize::try_from(pe).ok()?);
    place().unwrap_or(0)
}

/// Nothing of the host's is ever under way.
#[unsafe(no_mangle)]
extern "C" fn nvshmem_quiet() {}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_fence() {}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_barrier_all() {
    world::needed("nvshmem_barrier_all").barrier();
}

#[unsafe(no_mangle)]
extern "C" fn nvshmem_sync_all() {
    world::needed("nvshmem_sync_all").barrier();
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_buffer_register(address: usize, length: usize) -> i32 {
    world::needed("nvshmemx_buffer_register");
    i32::from(address == 0 || length == 0 || !lock(&REGISTERED).insert(address))
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_buffer_unregister(address: usize) -> i32 {
    i32::from(!lock(&REGISTERED).remove(&address))
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_buffer_unregister_all() {
    lock(&REGISTERED).clear();
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_buffer_register_symmetric(_buffer: usize, _size: usize, _flags: i32) -> usize {
    not_simulated("nvshmemx_buffer_register_symmetric")
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_buffer_unregister_symmetric(_mapped: usize, _size: usize) -> i32 {
    not_simulated("nvshmemx_buffer_unregister_symmetric")
}

/// Kernels of plugins use the host's heap pointers, so modules need nothing.
#[unsafe(no_mangle)]
extern "C" fn nvshmemx_cumodule_init(_module: usize) -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_cumodule_finalize(_module: usize) -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_culibrary_init(_library: usize) -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn nvshmemx_culibrary_finalize(_library: usize) -> i32 {
    0
}

/// Collective: all ranks get the same place of their heaps, or all get none.
fn allocate(call: &str, size: usize, alignment: usize) -> Option<usize> {
    let world = world::needed(call);
    if world.heap().is_none() {
        give_up(&format!("{call} without a current CUDA device"));
    }
    if size == 0 || !alignment.is_power_of_two() {
        return None;
    }
    world.agree(call, [size, alignment]);
    let address = world.made_heap()?.allocate(size, alignment);
    poison(&world, address, size);
    address
}

/// Nobody may write into the block before it is filled.
fn poison(world: &World, address: Option<usize>, size: usize) {
    if let Some(address) = address
        && config::poison()
    {
        bytes::fill(address, size, 0xFF);
    }
    world.barrier();
}
