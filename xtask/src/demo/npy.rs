//! Masks from numpy files.
use std::path::Path;

use crate::input::BadInput;

/// Reads an i32 array [b, h, s, C] in C order.
///
/// # Errors
/// [`BadInput`] naming the file: missing, truncated, of another type, order or number of dimensions.
pub(crate) fn read_i32(path: &Path) -> Result<([usize; 4], Vec<i32>), BadInput> {
    let refused = |what: &dyn std::fmt::Display| BadInput(format!("--mask file:{}: {what}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| refused(&error))?;
    let file = npyz::NpyFile::new(bytes.as_slice())
        .map_err(|error| refused(&format!("not an npy file: {error}")))?;
    if file.order() != npyz::Order::C {
        return Err(refused(&"is in Fortran order; save numpy.ascontiguousarray(mask)"));
    }
    let dims: Vec<usize> = file.shape().iter().filter_map(|dim| usize::try_from(*dim).ok()).collect();
    let shape = <[usize; 4]>::try_from(dims)
        .map_err(|dims| refused(&format!("has shape {dims:?}; expected 4 dimensions [b, h, s, C]")))?;
    let dtype = file.dtype();
    let elements = file
        .data::<i32>()
        .map_err(|_| refused(&format!("has type {}; expected i32", dtype.descr())))?
        .collect::<Result<Vec<i32>, _>>()
        .map_err(|error| refused(&format!("is truncated: {error}")))?;
    Ok((shape, elements))
}

#[cfg(test)]
mod tests {
    use npyz::WriterBuilder;

    use super::*;

    fn file(folder: &Path, shape: &[u64], data: &[i32]) -> std::path::PathBuf {
        let path = folder.join("mask.npy");
        let out = std::fs::File::create(&path).unwrap();
        let mut writer =
            npyz::WriteOptions::new().default_dtype().shape(shape).writer(out).begin_nd().unwrap();
        writer.extend(data).unwrap();
        writer.finish().unwrap();
        path
    }

    #[test]
    fn a_mask_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), &[1, 1, 3, 2], &[1, 2, 3, 4, 5, 6]);
        assert_eq!(read_i32(&path).unwrap(), ([1, 1, 3, 2], vec![1, 2, 3, 4, 5, 6]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(folder.path(), &[3, 2], &[1, 2, 3, 4, 5, 6]);
        assert!(read_i32(&path).unwrap_err().to_string().contains("[3, 2]"));
        let path = file(folder.path(), &[1, 1, 3, 2], &[1, 2, 3, 4, 5, 6]);
        let whole = std::fs::read(&path).unwrap();
        for len in [0, 5, 40, whole.len() - 1] {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert!(read_i32(&path).is_err(), "{len} bytes");
        }
        assert!(read_i32(&folder.path().join("absent")).unwrap_err().to_string().contains("absent"));
    }
}
