//! Memory and copies: where they may go, when they are there, what is refused.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod common;
#[path = "common/gpu.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod gpu;

use std::ffi::c_void;
use std::sync::atomic::AtomicU64;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaStream, result};
use gpu::{at, get, set, stays};

#[test]
#[ignore = "is started by the other tests"]
fn child() {
    let words = common::words();
    match words[0].as_str() {
        "devices" => devices(),
        "poison" => poison(words[1].parse().unwrap()),
        "pageable" => pageable(),
        "pitched" => pitched(),
        "batched" => batched(),
        "refused" => refused(),
        "shared" => shared(&words[1], words[2].parse().unwrap()),
        other => panic!("no case {other}"),
    }
}

#[test]
fn devices_are_as_many_as_wanted_and_look_like_hopper() {
    common::run("devices", &[("GPU_SIM_DEVICES", "2"), ("GPU_SIM_MEMORY", "1M")]);
}

fn devices() {
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let [zero, one] = [0, 1].map(|ordinal| CudaContext::new(ordinal).unwrap());
    assert_eq!(CudaContext::new(2).unwrap_err().0, CUresult::CUDA_ERROR_INVALID_DEVICE);
    assert_ne!(zero.uuid().unwrap().bytes, one.uuid().unwrap().bytes);
    assert_eq!((one.name().unwrap().as_str(), one.compute_capability().unwrap()), ("gpu-sim", (9, 0)));
    let opt_in = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    assert_eq!(zero.attribute(opt_in).unwrap(), 232_448);
    assert_eq!(zero.mem_get_info().unwrap(), (1 << 20, 1 << 20));
    let most = zero.default_stream().alloc_zeros::<u8>(1 << 19).unwrap();
    let error = zero.default_stream().alloc_zeros::<u8>((1 << 19) + 1).unwrap_err();
    assert_eq!(error.error_name().unwrap(), c"CUDA_ERROR_OUT_OF_MEMORY");
    drop(most);
    zero.synchronize().unwrap();
    assert_eq!(zero.mem_get_info().unwrap().0, 1 << 20);
}

#[test]
fn new_memory_is_filled_so_that_a_use_before_arrival_shows() {
    common::run("poison 255", &[]);
    common::run("poison 0", &[("GPU_SIM_POISON", "0")]);
}

fn poison(wanted: u8) {
    let context = gpu::context();
    let stream = gpu::stream(&context);
    // SAFETY: bytes may be anything.
    let memory = unsafe { stream.alloc::<u8>(100_000) }.unwrap();
    assert_eq!(stream.clone_dtoh(&memory).unwrap(), vec![wanted; 100_000]);
    let other = stream.clone_htod(&[1_u8; 100]).unwrap();
    assert_eq!(stream.clone_dtoh(&other).unwrap(), vec![1; 100]);
}

#[test]
fn pageable_memory_is_read_at_once_and_written_before_the_call_returns() {
    common::run("pageable", &[]);
}

fn pageable() {
    let context = gpu::context();
    let stream = gpu::stream(&context);
    let words = gpu::words(200);
    let (gate, there) = (&words[0], at(&words[100]));
    let mut host = vec![3_u64; 100];
    gpu::wait(&stream, gate, 1);
    // SAFETY: the driver takes pageable memory before it returns.
    unsafe { result::memcpy_htod_async(there, &host, stream.cu_stream()) }.unwrap();
    host.fill(4);
    stays("the copy waits", || get(&words[100]) == 0);
    std::thread::scope(|scope| {
        let back = scope.spawn(|| {
            context.bind_to_thread().unwrap();
            let mut back = vec![0_u64; 100];
            // SAFETY: the buffer lives on until the call returns, when the copy is done.
            unsafe { result::memcpy_dtoh_async(&mut back, there, stream.cu_stream()) }.unwrap();
            back
        });
        stays("so does the call that reads it back", || !back.is_finished());
        set(gate, 1);
        assert_eq!(back.join().unwrap(), vec![3; 100]);
    });
    large_pageable(&context, &stream);
    // Pinned memory is read when the stream comes to it.
    // SAFETY: a context is current.
    let pinned = unsafe { result::malloc_host(8, 0) }.unwrap();
    // SAFETY: it has 8 bytes.
    let pinned = unsafe { AtomicU64::from_ptr(pinned.cast()) };
    set(pinned, 5);
    gpu::wait(&stream, gate, 2);
    gpu::copy(&stream, there, at(pinned), 8);
    set(pinned, 6);
    set(gate, 2);
    stream.synchronize().unwrap();
    assert_eq!(get(&words[100]), 6);
}

/// Too much to be taken at once: the call waits for the stream.
fn large_pageable(context: &CudaContext, stream: &CudaStream) {
    let words = gpu::words(10_001);
    let (gate, there) = (&words[0], at(&words[1]));
    gpu::wait(stream, gate, 1);
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| {
            context.bind_to_thread().unwrap();
            // SAFETY: the driver takes pageable memory before it returns.
            unsafe { result::memcpy_htod_async(there, &[9_u64; 10_000], stream.cu_stream()) }.unwrap();
        });
        stays("a large copy waits at the call", || !copy.is_finished());
        set(gate, 1);
    });
    stream.synchronize().unwrap();
    assert!(words[1..].iter().all(|word| get(word) == 9));
}

#[test]
fn pitched_copies_and_fills_touch_their_rows_only() {
    common::run("pitched", &[]);
}

fn pitched() {
    let context = gpu::context();
    let stream = gpu::stream(&context);
    let from = stream.clone_htod(&(0..120_u8).collect::<Vec<_>>()).unwrap();
    let to = stream.clone_htod(&[200_u8; 90]).unwrap();
    let (from_address, to_address) = (address(&from, &stream), address(&to, &stream));
    // CUDA_MEMCPY2D, word by word: for each end x, y, kind (2: device), host, device, array, pitch; width, height.
    let mut copy = [3, 1, 2, 0, from_address, 0, 20, 2, 0, 2, 0, to_address, 0, 15, 7, 5];
    let queue = |copy: &[u64; 16]| {
        // SAFETY: the words are the structure; all rows lie in both slices, or the driver refuses it.
        unsafe { sys::cuMemcpy2DAsync_v2(copy.as_ptr().cast(), stream.cu_stream()) }
    };
    queue(&copy).result().unwrap();
    let row_of = |at: usize| (at / 15, at % 15);
    let wanted: Vec<u8> = (0..90)
        .map(|at| match row_of(at) {
            (row @ 0..5, column @ 2..9) => u8::try_from((row + 1) * 20 + 3 + column - 2).unwrap(),
            _ => 200,
        })
        .collect();
    assert_eq!(stream.clone_dtoh(&to).unwrap(), wanted);
    copy[6] = 9;
    assert_eq!(queue(&copy), CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: three rows of two words lie in the slice.
    unsafe { sys::cuMemsetD2D32Async(to_address, 16, 0x0404_0404, 2, 3, stream.cu_stream()) }
        .result()
        .unwrap();
    let filled = stream.clone_dtoh(&to).unwrap();
    let wanted = |at: usize| if at % 16 < 8 && at < 40 { 4 } else { wanted[at] };
    assert_eq!(filled, (0..90).map(wanted).collect::<Vec<_>>());
}

fn address<T>(slice: &cudarc::driver::CudaSlice<T>, stream: &CudaStream) -> u64 {
    use cudarc::driver::DevicePtr as _;
    slice.device_ptr(stream).0
}

#[test]
fn batched_copies_run_in_a_streams_order() {
    common::run("batched", &[]);
}

fn batched() {
    let context = gpu::context();
    let stream = gpu::stream(&context);
    let words = gpu::words(100);
    (0..50).for_each(|word| set(&words[word], word as u64 + 1));
    let pick = |from: usize| -> Vec<u64> { [0, 9, 20].map(|word| at(&words[from + word])).to_vec() };
    let (mut to, mut from, mut sizes) = (pick(50), pick(0), [8_usize, 16, 80]);
    // SAFETY: all zeros has no hints and no flags.
    let mut attributes: sys::CUmemcpyAttributes = unsafe { std::mem::zeroed() };
    attributes.srcAccessOrder = sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    let mut starts = [0_usize];
    let mut queue = |count: usize, stream: sys::CUstream| {
        let (to, from, sizes) = (to.as_mut_ptr(), from.as_mut_ptr(), sizes.as_mut_ptr());
        let (attributes, starts) = (&raw mut attributes, starts.as_mut_ptr());
        // SAFETY: all arrays have three entries, the attributes one.
        unsafe { sys::cuMemcpyBatchAsync_v2(to, from, sizes, count, attributes, starts, 1, stream) }
    };
    gpu::wait(&stream, &words[49], 51);
    queue(3, stream.cu_stream()).result().unwrap();
    assert_eq!(queue(0, stream.cu_stream()), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(queue(3, std::ptr::null_mut()), CUresult::CUDA_ERROR_INVALID_VALUE);
    stays("the batch waits", || get(&words[50]) == 0);
    set(&words[49], 51);
    stream.synchronize().unwrap();
    let wanted = |word: usize| match word {
        0 | 9 | 10 | 20..30 => word as u64 + 1,
        _ => 0,
    };
    assert!((0..50).all(|word| get(&words[50 + word]) == wanted(word)));
}

#[test]
fn mistakes_are_refused_and_do_not_crash() {
    common::run("refused", &[]);
}

fn refused() {
    let uninitialised = result::ctx::get_current().unwrap_err();
    assert_eq!(uninitialised.0, CUresult::CUDA_ERROR_NOT_INITIALIZED);
    let context = gpu::context();
    let stream = gpu::stream(&context);
    // SAFETY: a context is current, here and below; nothing but the driver uses the addresses.
    let [kept, freed] = [(); 2].map(|()| unsafe { result::malloc_sync(64) }.unwrap());
    // SAFETY: as before.
    unsafe { result::free_sync(freed) }.unwrap();
    // SAFETY: as before.
    assert!(unsafe { result::free_sync(freed) }.is_err());
    for (to, from, bytes) in [(kept, freed, 8), (freed, kept, 8), (kept, kept + 60, 8), (0, kept, 8)] {
        // SAFETY: as before.
        let error = unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }.unwrap_err();
        assert_eq!(error.0, CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: null is refused.
    assert_eq!(unsafe { sys::cuMemAlloc_v2(std::ptr::null_mut(), 8) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    let raw = result::stream::create(result::stream::StreamKind::NonBlocking).unwrap();
    // SAFETY: it was just made.
    unsafe { result::stream::destroy(raw) }.unwrap();
    // SAFETY: the simulator knows stale handles.
    let stale = unsafe { result::stream::synchronize(raw) }.unwrap_err();
    assert_eq!(stale.0, CUresult::CUDA_ERROR_INVALID_HANDLE);
    let mut host = [0_u64; 8];
    let mut register = || {
        // SAFETY: the array outlives the registration.
        unsafe { sys::cuMemHostRegister_v2(host.as_mut_ptr().cast::<c_void>(), 64, 0) }
    };
    register().result().unwrap();
    assert_eq!(register(), CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    let unregister = || {
        // SAFETY: no work uses it.
        unsafe { sys::cuMemHostUnregister(host.as_ptr() as *mut c_void) }
    };
    unregister().result().unwrap();
    assert_eq!(unregister(), CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

#[test]
fn streams_of_two_processes_meet_in_registered_shared_memory() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let children = [0, 1].map(|me| common::start(&format!("shared {} {me}", file.path().display()), &[]));
    children.into_iter().for_each(|child| drop(child.succeed()));
}

fn shared(file: &str, me: u64) {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let file = std::fs::File::options().read(true).write(true).open(file).unwrap();
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: the system chooses the address.
    let page = unsafe { mmap(std::ptr::null_mut(), 4096, access, flags, &file, 0) }.unwrap();
    let context = gpu::context();
    let stream = gpu::stream(&context);
    // SAFETY: the page is never unmapped.
    unsafe { sys::cuMemHostRegister_v2(page, 4096, 0) }.result().unwrap();
    let mut device = 0;
    // SAFETY: the address goes to a variable.
    unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut device, page, 0) }.result().unwrap();
    let [mine, other] = [me, 1 - me].map(|at| {
        // SAFETY: both words lie in the page, and are used as atomics only.
        unsafe { AtomicU64::from_ptr((device + 8 * at) as *mut u64) }
    });
    for round in 1..=200 {
        if me == 0 {
            gpu::write(&stream, mine, round);
            gpu::wait(&stream, other, round);
        } else {
            gpu::wait(&stream, other, round);
            gpu::write(&stream, mine, round);
        }
    }
    stream.synchronize().unwrap();
    assert!(get(mine) == 200 && get(other) >= 199);
}
