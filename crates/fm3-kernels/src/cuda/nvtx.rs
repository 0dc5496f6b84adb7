//! Ranges in the time lines of NVIDIA's profilers (NVTX), where its library is found at run time.
#![expect(unsafe_code, reason = "asking for the library runs its initialisers")]
use std::sync::OnceLock;

use cudarc::nvtx::{Range, scoped_range, sys};

/// What the calling thread does while this lives. It ends when dropped; without the library it is nothing.
#[must_use = "a range ends when it is dropped"]
pub struct NvtxRange(#[expect(dead_code, reason = "it is there to be dropped")] Option<Range>);

impl NvtxRange {
    /// Begins one. The library (`libnvToolsExt`, in CUDA 12 and older) is looked for once.
    pub fn begin(name: &'static str) -> Self {
        static PRESENT: OnceLock<bool> = OnceLock::new();
        // SAFETY: it opens the library by its usual names, whose initialisers are safe to run; any user of NVTX does it.
        let present = *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() });
        Self(present.then(|| scoped_range(name)))
    }
}

impl std::fmt::Debug for NvtxRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NvtxRange")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_has_empty_ranges() {
        let (outer, inner) = (NvtxRange::begin("outer"), NvtxRange::begin("inner"));
        assert_eq!(format!("{outer:?}"), "NvtxRange");
        drop((outer, inner));
    }
}
