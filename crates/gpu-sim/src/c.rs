//! Raw pointers that came in by the C interface: all reads and writes through them are here.
//!
//! These functions are safe to call inside the crate by one rule: a pointer that they get is a parameter of the C
//! interface (or lies where such a parameter says), and there the C caller vouches that it is null or good.
use std::ffi::{CStr, c_char};

use crate::code::{Code, Outcome};

/// Exports functions to which C gives more parameters than ours may have.
macro_rules! export {
    ($(
        $(#[$documentation:meta])*
        fn $name:ident($($parameter:ident: $type:ty),* $(,)?) $(-> $value:ty)? $body:block
    )*) => {
        $(
            $(#[$documentation])*
            #[unsafe(no_mangle)]
            extern "C" fn $name($($parameter: $type),*) $(-> $value)? $body
        )*
    };
}

pub(crate) use export;

/// Writes an out-parameter.
pub(crate) fn out<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    // SAFETY: not null, and the C caller vouches that it may be written as a `T`.
    unsafe { to.write(value) };
    Ok(())
}

/// Writes an out-parameter that may be left out.
pub(crate) fn out_if_wanted<T>(to: *mut T, value: T) {
    // Null is the only way in which it fails, and here that is allowed.
    _ = out(to, value);
}

/// Reads a structure.
pub(crate) fn read<T: Copy>(from: *const T) -> Outcome<T> {
    if from.is_null() {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    // SAFETY: not null, and the C caller vouches that it points to a `T`.
    Ok(unsafe { from.read() })
}

/// Copies an array of `count`.
pub(crate) fn array<T: Copy>(from: *const T, count: usize) -> Outcome<Vec<T>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if from.is_null() {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    // SAFETY: not null, and the C caller vouches for `count` of `T`.
    Ok(unsafe { std::slice::from_raw_parts(from, count) }.to_vec())
}

/// Copies a text.
pub(crate) fn text(from: *const c_char) -> Outcome<String> {
    if from.is_null() {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    // SAFETY: not null, and the C caller vouches for a NUL at the end.
    Ok(unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned())
}

/// Writes a text with its NUL, cut to `room` bytes.
pub(crate) fn out_text(to: *mut c_char, room: usize, text: &str) -> Outcome {
    if to.is_null() || room == 0 {
        return Err(Code::ERROR_INVALID_VALUE);
    }
    let bytes = text.bytes().take(room - 1).chain([0]);
    for (at, byte) in bytes.enumerate() {
        // SAFETY: `at` is below `room`, which the C caller says that there is.
        let to = unsafe { to.add(at) };
        // SAFETY: as before.
        unsafe { to.write(c_char::from_ne_bytes([byte])) };
    }
    Ok(())
}
