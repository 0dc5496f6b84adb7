//! Kernels: launches in streams, a plugin, failures, tensor maps.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod common;
#[path = "common/gpu.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod gpu;

use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;
use gpu::{at, get, set, soon, stays};
use gpu_sim::TensorMap;

#[test]
#[ignore = "is started by the other tests"]
fn child() {
    let words = common::words();
    match words[0].as_str() {
        "spin" => spin(),
        "plugin" => plugin(),
        "failure" => failure(),
        "anew" => anew(),
        "maps" => maps(),
        "no-plugin" => no_plugin(),
        other => panic!("no case {other}"),
    }
}

fn module(context: &Arc<CudaContext>) -> Arc<CudaModule> {
    context.load_module(Ptx::from_binary(b"any bytes".to_vec())).unwrap()
}

fn launch<T: Copy>(
    stream: &CudaStream,
    function: &CudaFunction,
    mut parameter: T,
    grid: u32,
    shared_memory: u32,
) -> Result<(), DriverError> {
    let mut parameters = [(&raw mut parameter).cast::<c_void>()];
    let (function, stream) = (function.cu_function(), stream.cu_stream());
    // SAFETY: the parameter is what the kernel takes, and is copied by the call.
    unsafe {
        result::launch_kernel(function, (grid, 1, 1), (32, 1, 1), shared_memory, stream, &mut parameters)
    }
}

#[test]
fn a_launch_holds_its_stream_and_no_other() {
    common::run("spin", &[("CUDA_DEVICE_MAX_CONNECTIONS", "2")]);
}

fn spin() {
    let context = gpu::context();
    let spin = module(&context).load_function("gpu_sim_spin_until").unwrap();
    // The third shares the first's connection.
    let [one, two, three] = [(); 3].map(|()| gpu::stream(&context));
    let [gate, ready, a, b, c, ..] = gpu::words(8) else { unreachable!() };
    gpu::wait(&one, ready, 1);
    launch(&one, &spin, [at(gate), 7], 4, 0).unwrap();
    gpu::write(&three, c, 1);
    stays("the connection is blocked before the launch", || get(c) == 0);
    set(ready, 1);
    soon("a running launch does not block it", || get(c) == 1);
    gpu::write(&two, b, 1);
    two.synchronize().unwrap();
    let event = one.record_event(None).unwrap();
    gpu::write(&one, a, 1);
    set(gate, 6);
    stays("later work of the stream waits", || get(a) == 0 && !event.is_complete() && !gpu::is_idle(&one));
    // Now that the write is at the head, it holds its connection.
    gpu::write(&three, c, 2);
    stays("and what is behind it in the connection", || get(c) == 1);
    set(gate, 7);
    one.synchronize().unwrap();
    assert!(get(a) == 1 && event.is_complete());
    three.synchronize().unwrap();
}

/// The example of this package, which cargo builds with the tests.
fn plugin_file() -> String {
    let program = std::env::current_exe().unwrap();
    let folder: PathBuf = program.ancestors().nth(2).unwrap().join("examples");
    folder.join("libgpu_sim_plugin.so").to_str().unwrap().to_owned()
}

#[test]
fn a_plugin_has_kernels_and_variables() {
    common::run("plugin", &[("GPU_SIM_KERNELS", &plugin_file())]);
}

fn plugin() {
    let context = gpu::context();
    let (module, stream) = (module(&context), gpu::stream(&context));
    let add = module.load_function("example_add").unwrap();
    let missing = module.load_function("example_sub").unwrap_err();
    assert_eq!(missing.0, CUresult::CUDA_ERROR_NOT_FOUND);
    let hash = module.get_global("example_abi_hash", &stream).unwrap();
    assert_eq!(stream.clone_dtoh(&hash).unwrap(), 0x0123_4567_89AB_CDEF_u64.to_ne_bytes());
    let words = gpu::words(129);
    // Aligned like the struct of device code; the simulator copies it at the launch.
    #[repr(C, align(128))]
    #[derive(Clone, Copy)]
    struct Params([u64; 3]);
    let mut params = Params([at(&words[0]), 128, 5]);
    gpu::wait(&stream, &words[128], 1);
    launch(&stream, &add, params, 4, 0).unwrap();
    params.0[2] = 100;
    launch(&stream, &add, params, 4, 0).unwrap();
    set(&words[128], 1);
    stream.synchronize().unwrap();
    assert!(words[..128].iter().all(|word| get(word) == 105));
    // More shared memory must be asked for; no blocks and too much are refused.
    let opt_in = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    assert!(
        launch(&stream, &add, params, 4, 50_000).is_err() && launch(&stream, &add, params, 0, 0).is_err()
    );
    assert!(add.set_attribute(opt_in, 232_449).is_err());
    add.set_attribute(opt_in, 50_000).unwrap();
    launch(&stream, &add, params, 4, 50_000).unwrap();
    stream.synchronize().unwrap();
    // Too few threads for the words: the kernel fails, and the context with it.
    launch(&stream, &add, params, 1, 0).unwrap();
    assert_eq!(stream.synchronize().unwrap_err().0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
}

#[test]
fn a_launch_that_fails_ends_the_context_and_all_that_waits() {
    common::run("failure", &[]);
}

fn failure() {
    let begin = Instant::now();
    let context = gpu::context();
    let module = module(&context);
    let [fail, spin] = ["gpu_sim_fail", "gpu_sim_spin_until"].map(|name| module.load_function(name).unwrap());
    let [one, two, three] = [(); 3].map(|()| gpu::stream(&context));
    let [never, out, ..] = gpu::words(8) else { unreachable!() };
    gpu::wait(&one, never, 1);
    let event = one.record_event(None).unwrap();
    launch(&two, &spin, [at(never), 1], 1, 0).unwrap();
    gpu::write(&two, out, 1);
    launch(&three, &fail, 719_u64, 1, 0).unwrap();
    // SAFETY: the streams and the event live.
    let waits = [&one, &two, &three].map(|stream| unsafe { sys::cuStreamSynchronize(stream.cu_stream()) });
    assert_eq!(waits, [CUresult::CUDA_ERROR_LAUNCH_FAILED; 3]);
    assert!(event.synchronize().is_err() && context.new_stream().is_err());
    assert_eq!(get(out), 0);
    assert!(begin.elapsed().as_secs() < 10);
}

#[test]
fn a_new_context_starts_anew_after_a_failure() {
    common::run("anew", &[("CUDA_DEVICE_MAX_CONNECTIONS", "1")]);
}

fn anew() {
    for _ in 0..20 {
        let context = gpu::context();
        let module = module(&context);
        let fail = module.load_function("gpu_sim_fail").unwrap();
        let [one, two] = [(); 2].map(|()| gpu::stream(&context));
        let never = &gpu::words(1)[0];
        launch(&one, &fail, 719_u64, 1, 0).unwrap();
        // Blocks the one connection, perhaps after the failure.
        _ = gpu::wait_until(&two, at(never), 1, 0);
        soon("the launch fails", || context.new_event(None).is_err());
        drop((one, two, fail, module, context));
        gpu::stream(&gpu::context()).synchronize().unwrap();
    }
}

#[test]
fn a_plugin_that_cannot_be_loaded_says_why() {
    let text = common::run("no-plugin", &[("GPU_SIM_KERNELS", "/nowhere/libplugin.so")]);
    assert!(text.contains("/nowhere/libplugin.so"), "{text}");
}

fn no_plugin() {
    let loaded = gpu::context().load_module(Ptx::from_binary(b"any".to_vec()));
    assert_eq!(loaded.unwrap_err().0, CUresult::CUDA_ERROR_FILE_NOT_FOUND);
}

#[test]
fn tensor_maps_are_readable_and_wrong_ones_are_refused() {
    common::run("maps", &[]);
}

/// What the driver is told; a change of one number makes it wrong.
#[derive(Clone, Copy)]
struct Told {
    data_type: u32,
    rank: u32,
    address: u64,
    dims: [u64; 5],
    strides: [u64; 4],
    boxes: [u32; 5],
    steps: [u32; 5],
    swizzle: u32,
    fill: u32,
}

impl Told {
    fn encode(&self) -> Result<TensorMap, DriverError> {
        type Encode = unsafe extern "C" fn(
            *mut sys::CUtensorMap,
            u32,
            u32,
            u64,
            *const u64,
            *const u64,
            *const u32,
            *const u32,
            u32,
            u32,
            u32,
            u32,
        ) -> CUresult;
        // Numbers that are in no enumeration must be passed, so not by cudarc's binding.
        // SAFETY: the library is there, and opening it has no conditions.
        let library = unsafe { sys::culib() };
        // SAFETY: the library stays loaded, and has this function with this signature.
        let encode = unsafe { library.get::<Encode>(b"cuTensorMapEncodeTiled\0") }.unwrap();
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        let (dims, strides) = (self.dims.as_ptr(), self.strides.as_ptr());
        let (boxes, steps) = (self.boxes.as_ptr(), self.steps.as_ptr());
        let Self { data_type, rank, address, swizzle, fill, .. } = *self;
        // SAFETY: the arrays are as long as a rank can be.
        unsafe {
            encode(&raw mut map, data_type, rank, address, dims, strides, boxes, steps, 0, swizzle, 3, fill)
        }
        .result()?;
        let mut bytes = [0; 128];
        bytes.chunks_mut(8).zip(map.opaque).for_each(|(to, word)| to.copy_from_slice(&word.to_ne_bytes()));
        Ok(TensorMap::decode(&bytes).unwrap())
    }
}

fn maps() {
    let good = Told {
        data_type: 9,
        rank: 4,
        address: 0x1000,
        dims: [128, 1000, 8, 2, 0],
        strides: [2048, 256, 2_048_000, 0],
        boxes: [64, 128, 1, 1, 0],
        steps: [1; 5],
        swizzle: 3,
        fill: 0,
    };
    let map = good.encode().unwrap();
    assert_eq!((map.address, map.rank, map.element_bytes(), map.dims), (0x1000, 4, 2, good.dims));
    assert_eq!((map.strides, map.box_dims, map.swizzle), (good.strides, good.boxes, 3));
    let wrong: [fn(&mut Told); 15] = [
        |told| told.data_type = 13,
        |told| told.rank = 0,
        |told| told.rank = 6,
        |told| told.address = 0x1008,
        |told| told.address = 0,
        |told| told.dims[1] = 0,
        |told| told.dims[1] = (1 << 32) + 1,
        |told| told.strides[1] = 264,
        |told| told.strides[2] = 1 << 40,
        |told| told.boxes[1] = 257,
        |told| told.boxes[2] = 0,
        |told| told.boxes[0] = 72,
        |told| told.boxes[0] = 4,
        |told| told.steps[1] = 9,
        |told| (told.fill, told.data_type) = (1, 1),
    ];
    for (at, change) in wrong.iter().enumerate() {
        let mut told = good;
        change(&mut told);
        let error = told.encode().expect_err(&format!("mistake {at}"));
        assert_eq!(error.0, CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let fine: [fn(&mut Told); 4] = [
        |told| told.boxes[0] = 56,
        |told| (told.swizzle, told.boxes[0]) = (0, 256),
        |told| told.dims[1] = 1 << 32,
        |told| (told.fill, told.rank) = (1, 3),
    ];
    for change in fine {
        let mut told = good;
        change(&mut told);
        told.encode().unwrap();
    }
}
