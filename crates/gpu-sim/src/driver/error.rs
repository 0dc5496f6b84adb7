//! Names of codes.
use std::ffi::c_char;

use crate::c;
use crate::code::{Code, Outcome};
use crate::context::{Needs, answer};

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: u32, name: *mut *const c_char) -> u32 {
    answer(Needs::Nothing, || names(code).and_then(|(text, _)| c::out(name, text.as_ptr().cast())))
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: u32, text: *mut *const c_char) -> u32 {
    answer(Needs::Nothing, || names(code).and_then(|(_, sentence)| c::out(text, sentence.as_ptr().cast())))
}

fn names(code: u32) -> Outcome<(&'static str, &'static str)> {
    Code(code).names().ok_or(Code::ERROR_INVALID_VALUE)
}
