//! Arrays of numpy, from the bytes of a file.

/// An i32 array of four dimensions in C order: its shape and elements.
///
/// # Errors
/// What is wrong: truncated, of another type, order or number of dimensions.
pub(crate) fn parse_i32(bytes: &[u8]) -> Result<([usize; 4], Vec<i32>), String> {
    let file = npyz::NpyFile::new(bytes).map_err(|error| format!("not an npy file: {error}"))?;
    if file.order() != npyz::Order::C {
        return Err("is in Fortran order; save numpy.ascontiguousarray(mask)".to_owned());
    }
    let dims: Vec<usize> = file.shape().iter().filter_map(|dim| usize::try_from(*dim).ok()).collect();
    let shape = <[usize; 4]>::try_from(dims)
        .map_err(|dims| format!("has shape {dims:?}; expected 4 dimensions [b, h, s, C]"))?;
    let dtype = file.dtype();
    let elements = file
        .data::<i32>()
        .map_err(|_| format!("has type {}; expected i32", dtype.descr()))?
        .collect::<Result<Vec<i32>, _>>()
        .map_err(|error| format!("is truncated: {error}"))?;
    Ok((shape, elements))
}
