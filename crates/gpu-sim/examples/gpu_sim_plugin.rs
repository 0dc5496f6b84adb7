//! A plugin: kernels as functions of a shared library, which `GPU_SIM_KERNELS` names.
//!
//! It has one kernel, `example_add`, that adds a number to each word of an array, and one variable, `example_abi_hash`.
use std::ffi::{CStr, c_char, c_void};

/// What the simulator calls the kernel by.
const ADD: u64 = 1;

/// A variable of device code.
static ABI_HASH: u64 = 0x0123_4567_89AB_CDEF;

/// The kernel's parameter, laid out as its device code has it.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct AddParams {
    address: u64,
    count: u64,
    value: u64,
}

/// The number of a kernel, 0 for none.
#[unsafe(no_mangle)]
extern "C" fn gpu_sim_find(name: *const c_char) -> u64 {
    // SAFETY: the simulator passes a text with a NUL.
    let name = unsafe { CStr::from_ptr(name) };
    if name == c"example_add" { ADD } else { 0 }
}

/// Bytes of a kernel's one parameter.
#[unsafe(no_mangle)]
extern "C" fn gpu_sim_param_size(id: u64) -> usize {
    if id == ADD { size_of::<AddParams>() } else { 0 }
}

/// Address and size of a variable.
#[unsafe(no_mangle)]
extern "C" fn gpu_sim_global(name: *const c_char, address: *mut *const u8, bytes: *mut usize) -> bool {
    // SAFETY: the simulator passes a text with a NUL.
    let name = unsafe { CStr::from_ptr(name) };
    if name != c"example_abi_hash" {
        return false;
    }
    // SAFETY: the simulator passes an address to write to.
    unsafe { address.write((&raw const ABI_HASH).cast()) };
    // SAFETY: as before.
    unsafe { bytes.write(size_of::<u64>()) };
    true
}

/// Runs a kernel to its end; returns a `CUresult`.
#[unsafe(no_mangle)]
extern "C" fn gpu_sim_launch(
    id: u64,
    parameters: *const *mut c_void,
    grid: *const [u32; 3],
    block: *const [u32; 3],
    _shared_memory: u32,
) -> i32 {
    // SAFETY: the simulator passes the kernel's parameter, aligned by 128.
    let parameter = unsafe { *parameters };
    // SAFETY: as before; it has the size that `gpu_sim_param_size` gave.
    let AddParams { address, count, value } = unsafe { *parameter.cast::<AddParams>() };
    // SAFETY: the simulator passes three extents.
    let blocks = unsafe { (*grid)[0] };
    // SAFETY: as before.
    let threads = unsafe { (*block)[0] };
    if id != ADD || u64::from(blocks) * u64::from(threads) < count {
        // CUDA_ERROR_ILLEGAL_ADDRESS.
        return 700;
    }
    for at in 0..count {
        let word = (address + 8 * at) as *mut u64;
        // SAFETY: whoever launches it gives `count` words there; device memory is the host's.
        let old = unsafe { word.read() };
        // SAFETY: as before.
        unsafe { word.write(old.wrapping_add(value)) };
    }
    0
}
