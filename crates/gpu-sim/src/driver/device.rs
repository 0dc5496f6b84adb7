//! Initialisation, devices and their memory pools.
use std::ffi::c_char;

use crate::c;
use crate::code::{Code, Outcome};
use crate::context::{self, Needs, answer};
use crate::{config, memory};

/// CUDA 13.0.
const DRIVER_VERSION: i32 = 13_000;

/// Device attributes by their numbers, of an H100 SXM; those that are not here are 0.
const ATTRIBUTES: [(i32, i32); 43] = [
    // Threads of a block, its extents, the grid's.
    (1, 1024),
    (2, 1024),
    (3, 1024),
    (4, 64),
    (5, i32::MAX),
    (6, 65_535),
    (7, 65_535),
    // Shared memory of a block without opting in, constant memory, warp, pitch, registers of a block.
    (8, 48 << 10),
    (9, 64 << 10),
    (10, 32),
    (11, i32::MAX),
    (12, 64 << 10),
    // Clock in kHz, texture alignment, overlap of copies and kernels, multiprocessors.
    (13, 1_980_000),
    (14, 512),
    (15, 1),
    (16, MULTIPROCESSORS),
    // Can map host memory, concurrent kernels, ECC.
    (19, 1),
    (31, 1),
    (32, 1),
    // Memory clock in kHz, bus width in bits, L2 in bytes, threads of a multiprocessor, copy engines, one address
    // space.
    (36, 2_619_000),
    (37, 5120),
    (38, 50 << 20),
    (39, 2048),
    (40, 3),
    (41, 1),
    // Compute capability 9.0, stream priorities, shared memory and registers of a multiprocessor.
    (75, 9),
    (76, 0),
    (78, 1),
    (81, 228 << 10),
    (82, 64 << 10),
    // Registered host memory has the same address on the device, cooperative launches, opt-in shared memory of a block.
    (91, 1),
    (95, 1),
    (97, MAX_SHARED_MEMORY),
    // Can flush remote writes, register host memory; blocks of a multiprocessor; shared memory that the system keeps.
    (98, 1),
    (99, 1),
    (106, 32),
    (111, 1024),
    // Memory pools, clusters, stream memory operations of 64 bits and NOR, tensor maps, what they share with the host.
    (115, 1),
    (120, 1),
    (122, 1),
    (123, 1),
    (127, 1),
    (86, 1),
];

/// Multiprocessors of a device.
const MULTIPROCESSORS: i32 = 132;

/// Dynamic shared memory that a block can opt in to, in bytes.
pub(super) const MAX_SHARED_MEMORY: i32 = 227 << 10;

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> u32 {
    answer(Needs::Nothing, || {
        if flags != 0 {
            return Err(Code::ERROR_INVALID_VALUE);
        }
        context::initialize();
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDriverGetVersion(version: *mut i32) -> u32 {
    answer(Needs::Nothing, || c::out(version, DRIVER_VERSION))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: *mut i32) -> u32 {
    answer(Needs::Init, || c::out(count, config::devices()))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> u32 {
    answer(Needs::Init, || c::out(device, context::device(ordinal)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: *mut c_char, room: i32, device: i32) -> u32 {
    answer(Needs::Init, || {
        context::device(device)?;
        c::out_text(name, usize::try_from(room).unwrap_or(0), "gpu-sim")
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: i32) -> u32 {
    answer(Needs::Init, || c::out(uuid, uuid_of(device)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: i32) -> u32 {
    answer(Needs::Init, || c::out(uuid, uuid_of(device)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetPCIBusId(id: *mut c_char, room: i32, device: i32) -> u32 {
    answer(Needs::Init, || {
        let text = format!("0000:{:02x}:00.0", context::device(device)? + 1);
        c::out_text(id, usize::try_from(room).unwrap_or(0), &text)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32) -> u32 {
    answer(Needs::Init, || {
        context::device(device)?;
        let known = ATTRIBUTES.iter().find(|(number, _)| *number == attribute);
        c::out(value, known.map_or(0, |(_, value)| *value))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) -> u32 {
    answer(Needs::Init, || {
        context::device(device)?;
        c::out(bytes, config::memory())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    answer(Needs::Context, || {
        c::out(free, memory::free_bytes())?;
        c::out(total, config::memory())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceCanAccessPeer(can: *mut i32, device: i32, peer: i32) -> u32 {
    answer(Needs::Init, || {
        let other = context::device(device)? != context::device(peer)?;
        c::out(can, i32::from(other))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetP2PAttribute(value: *mut i32, attribute: i32, device: i32, peer: i32) -> u32 {
    answer(Needs::Init, || {
        context::device(device)?;
        context::device(peer)?;
        // 1: rank of the link, 0 is the best; 2: access; 3: atomics; 4: arrays, of which there are none.
        match attribute {
            1 | 4 => c::out(value, 0),
            2 | 3 => c::out(value, 1),
            _ => Err(Code::ERROR_INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut usize, device: i32) -> u32 {
    answer(Needs::Init, || c::out(pool, pool_of(device)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetMemPool(pool: *mut usize, device: i32) -> u32 {
    answer(Needs::Init, || c::out(pool, pool_of(device)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolSetAttribute(_pool: usize, _attribute: i32, value: *const u64) -> u32 {
    answer(Needs::Init, || c::read(value).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemPoolTrimTo(_pool: usize, _keep: usize) -> u32 {
    answer(Needs::Init, || Ok(()))
}

/// Each device has one pool, which does nothing.
fn pool_of(device: i32) -> Outcome<usize> {
    let ordinal = usize::try_from(context::device(device)?).map_err(|_| Code::ERROR_INVALID_DEVICE)?;
    Ok(0x100 + ordinal)
}

/// "gpu-sim", the process unless all share one GPU, and the device's number.
fn uuid_of(device: i32) -> Outcome<[u8; 16]> {
    let mut uuid = *b"gpu-sim\0\0\0\0\0\0\0\0\0";
    let process = if config::one_gpu() { 0 } else { std::process::id() };
    uuid[8..12].copy_from_slice(&process.to_be_bytes());
    uuid[12..].copy_from_slice(&context::device(device)?.to_be_bytes());
    Ok(uuid)
}
