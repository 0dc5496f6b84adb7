//! Small checks that name the call and the numbers.
use super::CudaError;
use crate::{DType, Error};

/// Two sizes that must be equal.
pub(super) const fn equal(
    call: &'static str,
    [tensor, axis]: [&'static str; 2],
    got: usize,
    expected: usize,
) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::Mismatch { call, tensor, axis, got, expected }) }
}

/// A number that the kernels hold in 32 bits, at most `limit`.
pub(super) fn narrow(call: &'static str, name: &'static str, value: usize) -> Result<u32, Error> {
    within(call, name, value, i32::MAX.unsigned_abs())
}

/// A number of at least 1 and at most `limit`.
pub(super) fn within(call: &'static str, name: &'static str, value: usize, limit: u32) -> Result<u32, Error> {
    match u32::try_from(value) {
        Ok(number) if (1..=limit).contains(&number) => Ok(number),
        _ => Err(wrong(call, name, value as u64, format!("1 to {limit}"))),
    }
}

/// A value that breaks a rule.
pub(super) fn wrong(call: &'static str, name: &'static str, value: u64, rule: String) -> Error {
    CudaError::Value { call, name, value, rule }.into()
}

/// A tensor that must have the type of Q.
pub(super) fn same_type(
    call: &'static str,
    tensor: &'static str,
    got: DType,
    of_q: DType,
) -> Result<(), Error> {
    if got == of_q {
        return Ok(());
    }
    Err(CudaError::Type { call, tensor, got, rule: "all tensors of a call must have one type" }.into())
}
