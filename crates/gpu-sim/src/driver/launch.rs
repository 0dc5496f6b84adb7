//! Launches. Each runs on a thread of its own; the rest of its stream waits for it.
use super::device::MAX_SHARED_MEMORY;
use super::module;
use crate::c::export;
use crate::code::{Code, Outcome};
use crate::context::{self, Needs, answer};
use crate::kernels::Shape;
use crate::stream::Work;
use crate::{c, stream};

/// `CUlaunchConfig`; what attributes ask for (clusters, priorities) changes nothing.
#[repr(C)]
#[derive(Clone, Copy)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared_memory: u32,
    stream: usize,
    attributes: usize,
    attribute_count: u32,
}

const _: () = assert!(size_of::<Config>() == 56);

export! {
    fn cuLaunchKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared_memory: u32,
        stream: usize,
        parameters: *const *const u8,
        extra: usize,
    ) -> u32 {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared_memory };
        answer(Needs::Context, || launch(function, shape, stream, parameters, extra))
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(
    config: *const Config,
    function: usize,
    parameters: *const *const u8,
    extra: usize,
) -> u32 {
    answer(Needs::Context, || {
        let Config { grid, block, shared_memory, stream, .. } = c::read(config)?;
        launch(function, Shape { grid, block, shared_memory }, stream, parameters, extra)
    })
}

export! {
    /// Blocks run as the plugin likes: it alone knows whether they may wait for each other.
    fn cuLaunchCooperativeKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        shared_memory: u32,
        stream: usize,
        parameters: *const *const u8,
    ) -> u32 {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared_memory };
        answer(Needs::Context, || launch(function, shape, stream, parameters, 0))
    }
}

/// By threads and shared memory alone: 2048 threads and 228 KiB of a multiprocessor, 1 KiB of which each block costs.
#[unsafe(no_mangle)]
extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut i32,
    function: usize,
    threads: i32,
    shared_memory: usize,
) -> u32 {
    answer(Needs::Context, || {
        let function = module::get(function)?;
        let fits = u32::try_from(shared_memory).is_ok_and(|bytes| function.may_use(bytes));
        let threads = usize::try_from(threads).ok().filter(|threads| (1..=1024).contains(threads));
        let threads = threads.ok_or(Code::ERROR_INVALID_VALUE)?;
        let by_memory = (228 << 10) / (shared_memory + 1024);
        let active = if fits { (2048 / threads.next_multiple_of(32)).min(by_memory).min(32) } else { 0 };
        c::out(blocks, i32::try_from(active).unwrap_or(0))
    })
}

fn launch(
    function: usize,
    shape: Shape,
    stream: usize,
    parameters: *const *const u8,
    extra: usize,
) -> Outcome {
    let (function, stream) = (module::get(function)?, stream::get(stream)?);
    if extra != 0 {
        return Err(Code::ERROR_NOT_SUPPORTED);
    }
    let threads: u64 = shape.block.iter().copied().map(u64::from).product();
    let [_, rows, layers] = shape.grid;
    let has_blocks = shape.grid.iter().all(|extent| *extent > 0) && rows <= 65_535 && layers <= 65_535;
    if !has_blocks || !(1..=1024).contains(&threads) || !function.may_use(shape.shared_memory) {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    debug_assert!(shape.shared_memory <= MAX_SHARED_MEMORY.cast_unsigned());
    let (kernel, parameter) = (function.kernel, function.kernel.parameter(parameters)?);
    stream.push(Work::Apart(Box::new(move || {
        if let Err(code) = kernel.run(parameter, shape) {
            context::fail(code);
        }
    })));
    Ok(())
}
