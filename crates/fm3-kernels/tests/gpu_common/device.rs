//! The device under test, or a loud line that there is none.
use std::path::PathBuf;
use std::sync::{Arc, Once, OnceLock};

use fm3_kernels::Error;

use super::suite::say;
use fm3_kernels::cuda::cudarc::driver::{CudaContext, CudaStream};
use fm3_kernels::cuda::{Attention, CudaError, KernelSource, Kernels, context};

/// A stream of its own for each test; kernels are loaded once.
pub struct Gpu {
    pub attention: Attention,
    pub stream: Arc<CudaStream>,
}

impl Gpu {
    /// None without a Hopper; with `FM_REQUIRE_GPU=1` that is a failure. Kernels that are missing always are.
    pub fn new() -> Option<Self> {
        static LOADED: OnceLock<Result<Attention, Error>> = OnceLock::new();
        match LOADED.get_or_init(load) {
            Ok(attention) => {
                let stream = attention.kernels().context().new_stream().unwrap();
                Some(Self { attention: attention.clone(), stream })
            }
            Err(error) => {
                skip_or_fail(error);
                None
            }
        }
    }

    pub fn kernels(&self) -> &Kernels {
        self.attention.kernels()
    }

    pub fn context(&self) -> &Arc<CudaContext> {
        self.kernels().context()
    }

    /// Whether the driver is the simulated one: problems are solved by processor cores then, slowly.
    pub fn is_simulated(&self) -> bool {
        self.context().name().unwrap() == "gpu-sim"
    }
}

/// The folder `FM_KERNELS` if it is set: special builds, such as those with random delays.
pub fn special_folder() -> Option<PathBuf> {
    variable("FM_KERNELS").map(PathBuf::from)
}

fn load() -> Result<Attention, Error> {
    let source = special_folder().map_or(KernelSource::Search, KernelSource::Folder);
    let kernels = Kernels::load(&context(0)?, &source)?;
    Ok(Attention::new(Arc::new(kernels)))
}

#[expect(clippy::disallowed_methods, reason = "no library, but the tests' own switches")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn skip_or_fail(error: &Error) {
    static ONCE: Once = Once::new();
    let required = variable("FM_REQUIRE_GPU").as_deref() == Some("1");
    let no_device = match error {
        Error::Cuda(CudaError::NoDriver | CudaError::Capability { .. }) => true,
        // A driver without a device: cuInit or cuDeviceGet says so.
        Error::Cuda(CudaError::Driver { call, .. }) => *call == "cuDevicePrimaryCtxRetain",
        _ => false,
    };
    assert!(no_device && !required, "GPU tests cannot run: {error}");
    ONCE.call_once(|| {
        say(&format!("\nSKIPPED: no GPU to test on ({error}); FM_REQUIRE_GPU=1 makes this a failure"))
    });
}
