//! Fills, at once and in streams.
use crate::bytes::{Fill, Rows};
use crate::code::{Code, Outcome};
use crate::context::{Needs, answer};
use crate::stream;

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8_v2(to: usize, value: u8, count: usize) -> u32 {
    answer(Needs::Context, || at_once(line(to, &value.to_ne_bytes(), count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16_v2(to: usize, value: u16, count: usize) -> u32 {
    answer(Needs::Context, || at_once(line(to, &value.to_ne_bytes(), count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32_v2(to: usize, value: u32, count: usize) -> u32 {
    answer(Needs::Context, || at_once(line(to, &value.to_ne_bytes(), count)))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: usize, value: u8, count: usize, stream: usize) -> u32 {
    answer(Needs::Healthy, || queued(line(to, &value.to_ne_bytes(), count), stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD16Async(to: usize, value: u16, count: usize, stream: usize) -> u32 {
    answer(Needs::Healthy, || queued(line(to, &value.to_ne_bytes(), count), stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD32Async(to: usize, value: u32, count: usize, stream: usize) -> u32 {
    answer(Needs::Healthy, || queued(line(to, &value.to_ne_bytes(), count), stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD2D8Async(
    to: usize,
    pitch: usize,
    value: u8,
    width: usize,
    height: usize,
    stream: usize,
) -> u32 {
    let fill = Fill { to: Rows { address: to, pitch }, width, height, pattern: vec![value] };
    answer(Needs::Healthy, || queued(fill, stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD2D32Async(
    to: usize,
    pitch: usize,
    value: u32,
    width: usize,
    height: usize,
    stream: usize,
) -> u32 {
    let pattern = value.to_ne_bytes().to_vec();
    answer(Needs::Healthy, || {
        queued(Fill { to: Rows { address: to, pitch }, width, height, pattern }, stream)
    })
}

fn line(to: usize, pattern: &[u8], count: usize) -> Fill {
    Fill { to: Rows { address: to, pitch: 0 }, width: count, height: 1, pattern: pattern.to_vec() }
}

fn at_once(fill: Fill) -> Outcome {
    checked(&fill)?;
    fill.run();
    Ok(())
}

fn queued(fill: Fill, stream: usize) -> Outcome {
    checked(&fill)?;
    stream::get(stream)?.push_here(move || fill.run());
    Ok(())
}

fn checked(fill: &Fill) -> Outcome {
    let aligned = fill.to.address.is_multiple_of(fill.pattern.len());
    let wide = fill.height <= 1 || fill.to.pitch >= fill.width * fill.pattern.len();
    if aligned && wide { fill.check() } else { Err(Code::ERROR_INVALID_VALUE) }
}
