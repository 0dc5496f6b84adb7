//! Streams and functions of the host in them.
use crate::c;
use crate::code::Code;
use crate::context::{self, Needs, answer};
use crate::stream;

/// `CUhostFn`.
type HostFunction = extern "C" fn(usize);

/// `CUstreamCallback`: the stream, a code, the caller's data.
type Callback = extern "C" fn(usize, u32, usize);

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: *mut usize, flags: u32) -> u32 {
    answer(Needs::Context, || c::out(stream, stream::create(flags, 0)?))
}

/// The priority is kept and changes nothing.
#[unsafe(no_mangle)]
extern "C" fn cuStreamCreateWithPriority(stream: *mut usize, flags: u32, priority: i32) -> u32 {
    answer(Needs::Context, || c::out(stream, stream::create(flags, priority.clamp(-5, 0))?))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: usize) -> u32 {
    answer(Needs::Init, || stream::destroy(stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: usize) -> u32 {
    answer(Needs::Healthy, || {
        let idle = stream::get(stream)?.is_idle();
        context::healthy()?;
        idle.then_some(()).ok_or(Code::ERROR_NOT_READY)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: usize) -> u32 {
    answer(Needs::Healthy, || {
        stream::get(stream)?.synchronize();
        context::healthy()
    })
}

/// Nothing is ever captured.
#[unsafe(no_mangle)]
extern "C" fn cuStreamIsCapturing(stream: usize, status: *mut u32) -> u32 {
    answer(Needs::Healthy, || {
        stream::get(stream)?;
        c::out(status, 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(_stream: usize, _mode: u32) -> u32 {
    answer(Needs::Healthy, || Err(Code::ERROR_NOT_SUPPORTED))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCtx(stream: usize, context: *mut usize) -> u32 {
    answer(Needs::Context, || {
        stream::get(stream)?;
        c::out(context, context::current_handle())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetCtx_v2(stream: usize, context: *mut usize, green: *mut usize) -> u32 {
    answer(Needs::Context, || {
        stream::get(stream)?;
        c::out_if_wanted(green, 0);
        c::out(context, context::current_handle())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetDevice(stream: usize, device: *mut i32) -> u32 {
    answer(Needs::Context, || {
        stream::get(stream)?;
        c::out(device, context::current()?.1)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetId(stream: usize, id: *mut u64) -> u32 {
    answer(Needs::Context, || {
        stream::get(stream)?;
        c::out(id, stream as u64)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetFlags(stream: usize, flags: *mut u32) -> u32 {
    answer(Needs::Healthy, || c::out(flags, stream::get(stream)?.flags))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamGetPriority(stream: usize, priority: *mut i32) -> u32 {
    answer(Needs::Healthy, || c::out(priority, stream::get(stream)?.priority))
}

/// Managed memory is the host's anyway.
#[unsafe(no_mangle)]
extern "C" fn cuStreamAttachMemAsync(stream: usize, _address: usize, _bytes: usize, _flags: u32) -> u32 {
    answer(Needs::Healthy, || stream::get(stream).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchHostFunc(stream: usize, function: Option<HostFunction>, data: usize) -> u32 {
    answer(Needs::Healthy, || {
        let function = function.ok_or(Code::ERROR_INVALID_VALUE)?;
        stream::get(stream)?.push_here(move || function(data));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamAddCallback(
    stream: usize,
    callback: Option<Callback>,
    data: usize,
    _flags: u32,
) -> u32 {
    answer(Needs::Healthy, || {
        let callback = callback.ok_or(Code::ERROR_INVALID_VALUE)?;
        stream::get(stream)?.push_here(move || callback(stream, 0, data));
        Ok(())
    })
}
