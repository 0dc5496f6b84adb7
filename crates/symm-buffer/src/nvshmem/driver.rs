//! The calls of the CUDA driver that the fabric makes beyond cudarc's safe ones: batches of copies, memory operations in
//! stream order, registered host memory ([driver API](https://docs.nvidia.com/cuda/cuda-driver-api/index.html)).
#![expect(unsafe_code, reason = "the driver is called")]
use cudarc::driver::{CudaContext, CudaStream, DriverError, sys};

use crate::{Error, sync::Arc};

/// A copy between device addresses of this process, mapped ones of peers included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) dst: u64,
    pub(super) src: u64,
    /// Bytes of a row.
    pub(super) width: usize,
    pub(super) rows: usize,
    pub(super) dst_pitch: usize,
    pub(super) src_pitch: usize,
}

/// What a stream does to a word of memory, in order with its other work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemOp {
    /// Everything before it is visible to the whole system, then the word changes.
    Write { address: u64, value: u64 },
    /// What follows begins when the word, which only grows, is at least the value.
    Wait { address: u64, at_least: u64 },
}

impl Move {
    /// One run of bytes on both sides.
    pub(super) const fn is_flat(&self) -> bool {
        self.rows == 1 || (self.dst_pitch == self.width && self.src_pitch == self.width)
    }
}

/// Gives an answer of the driver the name of the call.
pub(super) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, Error>;
}

impl<T> Named<T> for Result<T, DriverError> {
    fn named(self, call: &'static str) -> Result<T, Error> {
        self.map_err(|error| {
            let text = |text: Result<&std::ffi::CStr, DriverError>| {
                text.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
            };
            let reason = format!("{}, {}", text(error.error_name()), text(error.error_string()));
            Error::Driver { call, reason }
        })
    }
}

/// The context of a device, on a driver that has what the fabric needs.
pub(super) fn context(ordinal: usize) -> Result<Arc<CudaContext>, Error> {
    /// Batches of copies in their present form came with this version.
    const OLDEST: i32 = 13_000;
    // SAFETY: it opens libcuda by its usual names, whose initialisers are safe to run; any user of CUDA does it.
    if !unsafe { sys::is_culib_present() } {
        let reason = "there is no driver library (libcuda) on this machine".to_owned();
        return Err(Error::Driver { call: "cuInit", reason });
    }
    let context = CudaContext::new(ordinal).named("cuDevicePrimaryCtxRetain")?;
    let mut version = 0;
    // SAFETY: the pointer is to a live int.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().named("cuDriverGetVersion")?;
    if version < OLDEST {
        let reason = format!("it is version {version}; {OLDEST} or later is needed");
        return Err(Error::Driver { call: "cuDriverGetVersion", reason });
    }
    Ok(context)
}

/// Queues copies; what is flat goes in one batch, in which the order is open.
///
/// # Safety
/// All bytes are device memory that the stream's context can reach, and stay so until the stream has come past.
pub(super) unsafe fn copy_all(stream: &CudaStream, moves: &[Move]) -> Result<(), Error> {
    let flat: Vec<Move> = moves.iter().copied().filter(Move::is_flat).collect();
    if flat.len() > 1 {
        // SAFETY: the caller vouches for the addresses.
        unsafe { copy_batch(stream, &flat) }?;
    } else if let [one] = flat[..] {
        let bytes = one.width * one.rows;
        // SAFETY: as before.
        unsafe { sys::cuMemcpyAsync(one.dst, one.src, bytes, stream.cu_stream()) }
            .result()
            .named("cuMemcpyAsync")?;
    }
    for pitched in moves.iter().filter(|one| !one.is_flat()) {
        // SAFETY: as before.
        unsafe { copy_rows(stream, pitched) }?;
    }
    Ok(())
}

/// # Safety
/// As [`copy_all`].
unsafe fn copy_batch(stream: &CudaStream, moves: &[Move]) -> Result<(), Error> {
    let mut dsts: Vec<u64> = moves.iter().map(|one| one.dst).collect();
    let mut srcs: Vec<u64> = moves.iter().map(|one| one.src).collect();
    let mut sizes: Vec<usize> = moves.iter().map(|one| one.width * one.rows).collect();
    // SAFETY: integers only, of which zero is a value: no hint where memory lies.
    let mut attributes: sys::CUmemcpyAttributes = unsafe { std::mem::zeroed() };
    attributes.srcAccessOrder = sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    // The attributes hold from copy 0 on.
    let mut from = 0_usize;
    // SAFETY: the three arrays have `len` elements and the two others one, all live during the call, which copies them;
    // the caller vouches for what they point to.
    let answer = unsafe {
        sys::cuMemcpyBatchAsync_v2(
            dsts.as_mut_ptr(),
            srcs.as_mut_ptr(),
            sizes.as_mut_ptr(),
            moves.len(),
            &raw mut attributes,
            &raw mut from,
            1,
            stream.cu_stream(),
        )
    };
    answer.result().named("cuMemcpyBatchAsync")
}

/// # Safety
/// As [`copy_all`].
unsafe fn copy_rows(stream: &CudaStream, copy: &Move) -> Result<(), Error> {
    let device = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
    let rows = sys::CUDA_MEMCPY2D {
        srcXInBytes: 0,
        srcY: 0,
        srcMemoryType: device,
        srcHost: std::ptr::null(),
        srcDevice: copy.src,
        srcArray: std::ptr::null_mut(),
        srcPitch: copy.src_pitch,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: device,
        dstHost: std::ptr::null_mut(),
        dstDevice: copy.dst,
        dstArray: std::ptr::null_mut(),
        dstPitch: copy.dst_pitch,
        WidthInBytes: copy.width,
        Height: copy.rows,
    };
    // SAFETY: the description is whole and live; the caller vouches for the memory.
    unsafe { sys::cuMemcpy2DAsync_v2(&raw const rows, stream.cu_stream()) }.result().named("cuMemcpy2DAsync")
}

/// Queues memory operations, in order.
///
/// # Safety
/// The words are memory that the stream's context can reach, aligned, and stay so until the stream has come past.
pub(super) unsafe fn mem_ops(stream: &CudaStream, ops: &[MemOp]) -> Result<(), Error> {
    /// The driver takes no more in one call.
    const MOST: usize = 256;
    for ops in ops.chunks(MOST) {
        let mut params: Vec<sys::CUstreamBatchMemOpParams> = ops.iter().map(|op| op.params()).collect();
        let count = u32::try_from(params.len()).unwrap_or(0);
        // SAFETY: the array is live and has `count` elements; the caller vouches for the words.
        unsafe { sys::cuStreamBatchMemOp_v2(stream.cu_stream(), count, params.as_mut_ptr(), 0) }
            .result()
            .named("cuStreamBatchMemOp")?;
    }
    Ok(())
}

impl MemOp {
    fn params(self) -> sys::CUstreamBatchMemOpParams {
        use sys::CUstreamBatchMemOpType as Type;
        // The union is larger than its members: what is beyond them is zero.
        let mut params = sys::CUstreamBatchMemOpParams { pad: [0; 6] };
        match self {
            Self::Write { address, value } => {
                params.writeValue = sys::CUstreamBatchMemOpParams_union_CUstreamMemOpWriteValueParams_st {
                    operation: Type::CU_STREAM_MEM_OP_WRITE_VALUE_64,
                    address,
                    __bindgen_anon_1:
                        sys::CUstreamBatchMemOpParams_union_CUstreamMemOpWriteValueParams_st__bindgen_ty_1 {
                            value64: value,
                        },
                    // With the fence that is the default.
                    flags: 0,
                    alias: 0,
                };
            }
            Self::Wait { address, at_least } => {
                params.waitValue = sys::CUstreamBatchMemOpParams_union_CUstreamMemOpWaitValueParams_st {
                    operation: Type::CU_STREAM_MEM_OP_WAIT_VALUE_64,
                    address,
                    __bindgen_anon_1:
                        sys::CUstreamBatchMemOpParams_union_CUstreamMemOpWaitValueParams_st__bindgen_ty_1 {
                            value64: at_least,
                        },
                    flags: sys::CUstreamWaitValue_flags::CU_STREAM_WAIT_VALUE_GEQ as u32,
                    alias: 0,
                };
            }
        }
        params
    }
}

/// Whether all work of a stream is done.
///
/// # Errors
/// What earlier work failed with.
pub(super) fn is_idle(stream: &CudaStream) -> Result<bool, Error> {
    stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
    // SAFETY: the stream is live as long as the reference.
    match unsafe { sys::cuStreamQuery(stream.cu_stream()) } {
        sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        answer => answer.result().named("cuStreamQuery").map(|()| true),
    }
}

/// Host memory that the device sees.
#[derive(Debug)]
pub(super) struct Registered {
    context: Arc<CudaContext>,
    host: *mut u8,
    /// Where the device finds its first byte.
    pub(super) device: u64,
}

// SAFETY: the host address is only handed back to the driver, which takes calls from any thread.
unsafe impl Send for Registered {}
// SAFETY: nothing changes through a shared reference.
unsafe impl Sync for Registered {}

impl Registered {
    /// Registers `len` bytes at `host`.
    ///
    /// # Safety
    /// They stay mapped until this is dropped and until all work that uses them is done.
    pub(super) unsafe fn new(
        context: &Arc<CudaContext>,
        (host, len): (*mut u8, usize),
    ) -> Result<Self, Error> {
        const FLAGS: u32 = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        context.bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: the caller vouches for the memory.
        unsafe { sys::cuMemHostRegister_v2(host.cast(), len, FLAGS) }.result().named("cuMemHostRegister")?;
        let mut registered = Self { context: context.clone(), host, device: 0 };
        // SAFETY: the memory has just been registered, and the place for the answer is live.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut registered.device, host.cast(), 0) }
            .result()
            .named("cuMemHostGetDevicePointer")?;
        Ok(registered)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: it was registered by `new`. Should the driver refuse, the memory stays registered, nothing worse.
            _ = unsafe { sys::cuMemHostUnregister(self.host.cast()) };
        }
    }
}
