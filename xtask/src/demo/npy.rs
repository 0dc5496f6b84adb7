//! Masks from numpy files.
use std::path::Path;

use crate::input::BadInput;
use crate::npy;

/// Reads an i32 array [b, h, s, C] in C order.
///
/// # Errors
/// [`BadInput`] naming the file: missing, or what [`npy::parse_i32`] refuses.
pub(crate) fn read_i32(path: &Path) -> Result<([usize; 4], Vec<i32>), BadInput> {
    let refused = |what: &dyn std::fmt::Display| BadInput(format!("--mask file:{}: {what}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| refused(&error))?;
    npy::parse_i32(&bytes).map_err(|error| refused(&error))
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
