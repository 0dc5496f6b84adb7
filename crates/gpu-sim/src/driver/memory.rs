//! Device memory, pinned host memory, and host memory that the caller registers.
use crate::code::{Code, Outcome};
use crate::context::{self, Needs, answer};
use crate::memory::{self, Kind};
use crate::{c, stream};

#[unsafe(no_mangle)]
extern "C" fn cuMemAlloc_v2(address: *mut usize, bytes: usize) -> u32 {
    answer(Needs::Context, || c::out(address, memory::allocate(bytes, Kind::Device)?))
}

/// Does not wait for work that uses the memory; such work finds zeros.
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: usize) -> u32 {
    answer(Needs::Healthy, || if address == 0 { Ok(()) } else { memory::free(address, Kind::Device) })
}

/// The memory is there at once, which a program cannot tell from in the stream's order.
#[unsafe(no_mangle)]
extern "C" fn cuMemAllocAsync(address: *mut usize, bytes: usize, stream: usize) -> u32 {
    answer(Needs::Context, || {
        stream::get(stream)?;
        c::out(address, memory::allocate(bytes, Kind::Device)?)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeAsync(address: usize, stream: usize) -> u32 {
    answer(Needs::Healthy, || {
        let stream = stream::get(stream)?;
        let begins = memory::find(address).is_some_and(|range| range.first == address);
        if !begins || memory::kind(address, 1)? != Some(Kind::Device) {
            return Err(Code::ERROR_INVALID_VALUE);
        }
        // Freed twice before the stream comes here: the second changes nothing.
        stream.push_here(move || _ = memory::free(address, Kind::Device));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostAlloc(address: *mut usize, bytes: usize, _flags: u32) -> u32 {
    answer(Needs::Context, || c::out(address, memory::allocate(bytes, Kind::Pinned)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemAllocHost_v2(address: *mut usize, bytes: usize) -> u32 {
    answer(Needs::Context, || c::out(address, memory::allocate(bytes, Kind::Pinned)?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: usize) -> u32 {
    answer(Needs::Healthy, || memory::free(address, Kind::Pinned))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(address: usize, bytes: usize, _flags: u32) -> u32 {
    answer(Needs::Context, || memory::register(address, bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(address: usize) -> u32 {
    answer(Needs::Healthy, || memory::unregister(address))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostGetDevicePointer_v2(device: *mut usize, host: usize, flags: u32) -> u32 {
    answer(Needs::Context, || match memory::kind(host, 1)? {
        Some(Kind::Pinned | Kind::Registered) if flags == 0 => c::out(device, host),
        _ => Err(Code::ERROR_INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostGetFlags(flags: *mut u32, host: usize) -> u32 {
    answer(Needs::Context, || match memory::kind(host, 1)? {
        // Mapped and portable, as all host memory is with one address space.
        Some(Kind::Pinned | Kind::Registered) => c::out(flags, 3),
        _ => Err(Code::ERROR_INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetAddressRange_v2(first: *mut usize, bytes: *mut usize, address: usize) -> u32 {
    answer(Needs::Context, || {
        memory::kind(address, 1)?;
        let range = memory::find(address).ok_or(Code::ERROR_NOT_FOUND)?;
        c::out_if_wanted(first, range.first);
        c::out_if_wanted(bytes, range.bytes);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuPointerGetAttribute(data: usize, attribute: u32, address: usize) -> u32 {
    answer(Needs::Context, || attribute_of(data, attribute, address))
}

/// Attributes that do not apply are 0, as in the real driver.
#[unsafe(no_mangle)]
extern "C" fn cuPointerGetAttributes(
    count: u32,
    attributes: *const u32,
    data: *const usize,
    address: usize,
) -> u32 {
    answer(Needs::Context, || {
        let (attributes, data) = (c::array(attributes, count as usize)?, c::array(data, count as usize)?);
        for (attribute, data) in attributes.into_iter().zip(data) {
            if attribute_of(data, attribute, address).is_err() {
                // All that are asked for have at least four bytes.
                c::out(data as *mut u32, 0)?;
            }
        }
        Ok(())
    })
}

fn attribute_of(data: usize, attribute: u32, address: usize) -> Outcome {
    memory::kind(address, 1)?;
    let range = memory::find(address).ok_or(Code::ERROR_INVALID_VALUE)?;
    let host = matches!(range.kind, Kind::Pinned | Kind::Registered);
    match attribute {
        // The context.
        1 => c::out(data as *mut usize, context::current()?.0),
        // The type: 1 is host memory, 2 device memory.
        2 => c::out(data as *mut u32, if host { 1 } else { 2 }),
        // The addresses for the device and for the host.
        3 => c::out(data as *mut usize, address),
        4 if host => c::out(data as *mut usize, address),
        // Whether it is managed, the device, the range, whether it is mapped.
        8 => c::out(data as *mut u32, 0),
        9 => c::out(data as *mut i32, context::current()?.1),
        11 => c::out(data as *mut usize, range.first),
        12 => c::out(data as *mut usize, range.bytes),
        13 => c::out(data as *mut u32, 1),
        _ => Err(Code::ERROR_INVALID_VALUE),
    }
}
