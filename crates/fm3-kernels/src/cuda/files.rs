//! Where the kernels' binaries are.
use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaModule};

use super::CudaError;
use super::kernels::module;
use crate::Error;

/// Where to take the kernels from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KernelSource {
    /// The binaries that the feature `embed` put into this program; else the folder of the executable, its
    /// subfolder `kernels`, and `target/kernels` of the workspace that this library was compiled in.
    #[default]
    Search,
    /// This folder and no other.
    Folder(PathBuf),
}

impl KernelSource {
    /// Loads a binary whose kernels are another crate's, from where this crate's are; `file` is its name. It must name
    /// [`ABI_HASH`](crate::params::ABI_HASH) as ours do.
    ///
    /// # Errors
    /// As [`Kernels::load`](super::Kernels::load).
    pub fn module(&self, context: &Arc<CudaContext>, file: &'static str) -> Result<Arc<CudaModule>, Error> {
        module(context, Binary::Other(file), self)
    }
}

/// Binaries that are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    ForwardBf16,
    ForwardF16,
    Mask,
    BackwardBf16,
    BackwardF16,
    Probe,
    /// Of another crate.
    Other(&'static str),
}

impl Binary {
    pub(super) const fn file(self) -> &'static str {
        match self {
            Binary::ForwardBf16 => "fwd_d128_bf16.sm_90a.cubin",
            Binary::ForwardF16 => "fwd_d128_f16.sm_90a.cubin",
            Binary::Mask => "mask.sm_90a.cubin",
            Binary::BackwardBf16 => "bwd_d128_bf16.sm_90a.cubin",
            Binary::BackwardF16 => "bwd_d128_f16.sm_90a.cubin",
            Binary::Probe => "probe.sm_90a.cubin",
            Binary::Other(file) => file,
        }
    }

    /// Its bytes.
    pub(super) fn read(self, source: &KernelSource) -> Result<Cow<'static, [u8]>, Error> {
        let folders = match source {
            KernelSource::Folder(folder) => vec![folder.clone()],
            KernelSource::Search => match self.embedded() {
                Some(bytes) => return Ok(Cow::Borrowed(bytes)),
                None => usual_folders(),
            },
        };
        for path in folders.iter().map(|folder| folder.join(self.file())) {
            match std::fs::read(&path) {
                Ok(bytes) => return Ok(Cow::Owned(bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(CudaError::Unreadable { path, text: error.to_string() }.into()),
            }
        }
        Err(CudaError::NoKernels { file: self.file().to_owned(), tried: folders }.into())
    }

    #[cfg(feature = "embed")]
    const fn embedded(self) -> Option<&'static [u8]> {
        Some(match self {
            Binary::ForwardBf16 => {
                include_bytes!(concat!(env!("FM3_KERNELS"), "/fwd_d128_bf16.sm_90a.cubin"))
            }
            Binary::ForwardF16 => {
                include_bytes!(concat!(env!("FM3_KERNELS"), "/fwd_d128_f16.sm_90a.cubin"))
            }
            Binary::Mask => include_bytes!(concat!(env!("FM3_KERNELS"), "/mask.sm_90a.cubin")),
            Binary::Probe => include_bytes!(concat!(env!("FM3_KERNELS"), "/probe.sm_90a.cubin")),
            Binary::Other(_) => return None,
            Binary::BackwardBf16 => {
                include_bytes!(concat!(env!("FM3_KERNELS"), "/bwd_d128_bf16.sm_90a.cubin"))
            }
            Binary::BackwardF16 => {
                include_bytes!(concat!(env!("FM3_KERNELS"), "/bwd_d128_f16.sm_90a.cubin"))
            }
        })
    }

    #[cfg(not(feature = "embed"))]
    const fn embedded(self) -> Option<&'static [u8]> {
        None
    }
}

fn usual_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(beside) = std::env::current_exe().ok().as_deref().and_then(Path::parent) {
        folders.extend([beside.to_owned(), beside.join("kernels")]);
    }
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/kernels"));
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_binary_names_the_command_and_the_folder() {
        let folder = KernelSource::Folder(PathBuf::from("no/such/folder"));
        let text = Binary::Mask.read(&folder).unwrap_err().to_string();
        assert!(text.contains("cargo xtask build-kernels") && text.contains("no/such/folder"), "{text}");
    }
}
