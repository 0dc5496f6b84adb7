//! What the simulated driver calls.
use std::ffi::{CStr, c_char, c_void};
use std::panic;

use crate::blocks::Shape;
use crate::kernels::{HASH, KERNELS, Kernel, SHARED_MEMORY};

/// `CUresult`s of launches that fail.
const ILLEGAL_ADDRESS: i32 = 700;
const INVALID_HANDLE: i32 = 400;
const LAUNCH_FAILED: i32 = 719;

/// The number of a kernel, 0 for none.
#[unsafe(no_mangle)]
extern "C" fn gpu_sim_find(name: *const c_char) -> u64 {
    let place = text(name).and_then(|name| KERNELS.iter().position(|kernel| kernel.name == name));
    place.map_or(0, |place| place as u64 + 1)
}

/// Bytes of a kernel's one parameter.
#[unsafe(no_mangle)]
extern "C" fn gpu_sim_param_size(id: u64) -> usize {
    kernel(id).map_or(0, |kernel| kernel.parameter_bytes)
}

/// Address and size of a variable.
#[unsafe(no_mangle)]
extern "C" fn gpu_sim_global(name: *const c_char, address: *mut *const u8, bytes: *mut usize) -> bool {
    let (variable, size) = match text(name) {
        Some("fm3_abi_hash") => ((&raw const HASH).cast(), size_of_val(&HASH)),
        Some("fm3_smem_bytes") => ((&raw const SHARED_MEMORY).cast(), size_of_val(&SHARED_MEMORY)),
        _ => return false,
    };
    // SAFETY: the simulator passes an address to write to.
    unsafe { address.write(variable) };
    // SAFETY: as before.
    unsafe { bytes.write(size) };
    true
}

/// Runs a kernel to its end; returns a `CUresult`.
#[unsafe(no_mangle)]
extern "C" fn gpu_sim_launch(
    id: u64,
    parameters: *const *mut c_void,
    grid: *const [u32; 3],
    block: *const [u32; 3],
    shared_memory: u32,
) -> i32 {
    let Some(kernel) = kernel(id) else { return INVALID_HANDLE };
    // SAFETY: the simulator passes an array of one pointer.
    let parameter = unsafe { parameters.read() };
    // SAFETY: it passes the extents.
    let grid = unsafe { grid.read() };
    // SAFETY: as before.
    let block = unsafe { block.read() };
    if block != [kernel.threads, 1, 1] || shared_memory < kernel.shared_memory {
        return LAUNCH_FAILED;
    }
    let shape = Shape { grid, block, shared_memory };
    let run = || (kernel.run)(parameter.expose_provenance() as u64, shape);
    // What it says has been printed.
    panic::catch_unwind(run).map_or(ILLEGAL_ADDRESS, |()| 0)
}

fn kernel(id: u64) -> Option<&'static Kernel> {
    KERNELS.get(usize::try_from(id.checked_sub(1)?).ok()?)
}

fn text(name: *const c_char) -> Option<&'static str> {
    // SAFETY: the simulator passes a text with a NUL, which lives longer than the call that this is used in.
    unsafe { CStr::from_ptr(name) }.to_str().ok()
}
