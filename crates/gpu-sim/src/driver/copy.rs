//! Copies of one piece or of rows, at once and in streams. Those at once are ordered after nothing but themselves.
use crate::bytes::{Copy, Rows, copy_in_stream, copy_now};
use crate::code::{Code, Outcome};
use crate::context::{Needs, answer};
use crate::{c, stream};

/// `CUDA_MEMCPY2D`: one end.
#[repr(C)]
#[derive(Clone, Copy)]
struct End {
    x_bytes: usize,
    y: usize,
    /// 1 host, 2 device, 4 either.
    memory_type: u32,
    host: usize,
    device: usize,
    array: usize,
    pitch: usize,
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Copy2d {
    from: End,
    to: End,
    width_bytes: usize,
    height: usize,
}

const _: () = assert!(size_of::<Copy2d>() == 128);

impl End {
    fn rows(&self, width: usize, height: usize) -> Outcome<Rows> {
        let base = match self.memory_type {
            1 => self.host,
            2 | 4 => self.device,
            _ => return Err(Code::ERROR_INVALID_VALUE),
        };
        // One row needs no pitch.
        let pitch =
            if height <= 1 && self.y == 0 { self.pitch.max(width + self.x_bytes) } else { self.pitch };
        if base == 0 || pitch < width.saturating_add(self.x_bytes) {
            return Err(Code::ERROR_INVALID_VALUE);
        }
        Ok(Rows { address: base + self.y * pitch + self.x_bytes, pitch })
    }
}

impl Copy2d {
    fn copy(&self) -> Outcome<Copy> {
        let (width, height) = (self.width_bytes, self.height);
        Ok(Copy { to: self.to.rows(width, height)?, from: self.from.rows(width, height)?, width, height })
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy(to: usize, from: usize, bytes: usize) -> u32 {
    at_once(Copy::line(to, from, bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoD_v2(to: usize, from: usize, bytes: usize) -> u32 {
    at_once(Copy::line(to, from, bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoH_v2(to: usize, from: usize, bytes: usize) -> u32 {
    at_once(Copy::line(to, from, bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoD_v2(to: usize, from: usize, bytes: usize) -> u32 {
    at_once(Copy::line(to, from, bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeer(
    to: usize,
    _to_context: usize,
    from: usize,
    _from_context: usize,
    bytes: usize,
) -> u32 {
    at_once(Copy::line(to, from, bytes))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyAsync(to: usize, from: usize, bytes: usize, stream: usize) -> u32 {
    queued(Copy::line(to, from, bytes), stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> u32 {
    queued(Copy::line(to, from, bytes), stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> u32 {
    queued(Copy::line(to, from, bytes), stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: usize, from: usize, bytes: usize, stream: usize) -> u32 {
    queued(Copy::line(to, from, bytes), stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyPeerAsync(
    to: usize,
    _to_context: usize,
    from: usize,
    _from_context: usize,
    bytes: usize,
    stream: usize,
) -> u32 {
    queued(Copy::line(to, from, bytes), stream)
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2D_v2(copy: *const Copy2d) -> u32 {
    answer(Needs::Context, || copy_now(c::read(copy)?.copy()?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2DUnaligned_v2(copy: *const Copy2d) -> u32 {
    answer(Needs::Context, || copy_now(c::read(copy)?.copy()?))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpy2DAsync_v2(copy: *const Copy2d, stream: usize) -> u32 {
    answer(Needs::Healthy, || copy_in_stream(&stream::get(stream)?, vec![c::read(copy)?.copy()?]))
}

fn at_once(copy: Copy) -> u32 {
    answer(Needs::Context, || copy_now(copy))
}

fn queued(copy: Copy, stream: usize) -> u32 {
    answer(Needs::Healthy, || copy_in_stream(&stream::get(stream)?, vec![copy]))
}
