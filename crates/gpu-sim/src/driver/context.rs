//! Contexts.
use crate::c;
use crate::code::{Code, Outcome};
use crate::context::{self, Needs, answer};
use crate::stream;

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, device: i32) -> u32 {
    answer(Needs::Init, || c::out(context, context::retain(context::device(device)?)))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: i32) -> u32 {
    answer(Needs::Init, || context::release(context::device(device)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxGetState(device: i32, flags: *mut u32, active: *mut i32) -> u32 {
    answer(Needs::Init, || {
        let ordinal = context::device(device)?;
        c::out(flags, 0)?;
        c::out(active, i32::from(context::is_active(ordinal)))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxSetFlags_v2(device: i32, _flags: u32) -> u32 {
    answer(Needs::Init, || context::device(device).map(drop))
}

/// Its parameters are not looked at.
#[unsafe(no_mangle)]
extern "C" fn cuCtxCreate_v4(context: *mut usize, _parameters: usize, _flags: u32, device: i32) -> u32 {
    answer(Needs::Init, || {
        let handle = context::create(context::device(device)?);
        c::out(context, handle)?;
        context::push(handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDestroy_v2(context: usize) -> u32 {
    answer(Needs::Init, || context::destroy(context))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: usize) -> u32 {
    answer(Needs::Init, || context::set_current(context))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCurrent(context: *mut usize) -> u32 {
    answer(Needs::Init, || c::out(context, context::current_handle()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPushCurrent_v2(context: usize) -> u32 {
    answer(Needs::Init, || context::push(context))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxPopCurrent_v2(context: *mut usize) -> u32 {
    answer(Needs::Init, || {
        let handle = context::pop().ok_or(Code::ERROR_INVALID_CONTEXT)?;
        c::out_if_wanted(context, handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetDevice(device: *mut i32) -> u32 {
    answer(Needs::Init, || c::out(device, context::current()?.1))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> u32 {
    answer(Needs::Context, synchronize)
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxEnablePeerAccess(peer: usize, flags: u32) -> u32 {
    answer(Needs::Context, || {
        let other = context::device_of(peer)? != context::current()?.1;
        if other && flags == 0 { Ok(()) } else { Err(Code::ERROR_INVALID_VALUE) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxDisablePeerAccess(peer: usize) -> u32 {
    answer(Needs::Context, || context::device_of(peer).map(drop))
}

/// Six levels as on an H100; they change nothing.
#[unsafe(no_mangle)]
extern "C" fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) -> u32 {
    answer(Needs::Context, || {
        c::out_if_wanted(least, 0);
        c::out_if_wanted(greatest, -5);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetFlags(_flags: u32) -> u32 {
    answer(Needs::Context, || Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetFlags(flags: *mut u32) -> u32 {
    answer(Needs::Context, || c::out(flags, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetLimit(_limit: u32, _value: usize) -> u32 {
    answer(Needs::Context, || Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetLimit(value: *mut usize, _limit: u32) -> u32 {
    answer(Needs::Context, || c::out(value, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCacheConfig(_config: u32) -> u32 {
    answer(Needs::Context, || Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetCacheConfig(config: *mut u32) -> u32 {
    answer(Needs::Context, || c::out(config, 0))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxGetApiVersion(context: usize, version: *mut u32) -> u32 {
    answer(Needs::Init, || {
        if context != 0 {
            context::device_of(context)?;
        }
        c::out(version, 3020)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStart() -> u32 {
    answer(Needs::Context, || Ok(()))
}

#[unsafe(no_mangle)]
extern "C" fn cuProfilerStop() -> u32 {
    answer(Needs::Context, synchronize)
}

fn synchronize() -> Outcome {
    stream::synchronize_all();
    context::healthy()
}
