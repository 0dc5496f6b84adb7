//! Kernels: functions of a plugin, and two of the simulator's own.
use std::error::Error as _;
use std::ffi::{CString, c_char, c_void};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libloading::os::unix::Library;

use crate::c;
use crate::code::{Code, Outcome};
use crate::config;
use crate::context;
use crate::word::{Word, poll};

/// Number of a kernel by its name, 0 for none.
type Find = unsafe extern "C" fn(name: *const c_char) -> u64;

/// Bytes of a kernel's one parameter.
type ParameterSize = unsafe extern "C" fn(id: u64) -> usize;

/// Address and size of a variable.
type Global = unsafe extern "C" fn(name: *const c_char, address: *mut *const u8, bytes: *mut usize) -> bool;

/// Runs a kernel on the calling thread; returns a `CUresult`.
type Launch = unsafe extern "C" fn(
    id: u64,
    parameters: *const *mut c_void,
    grid: *const [u32; 3],
    block: *const [u32; 3],
    shared_memory: u32,
) -> i32;

/// How long the simulator's own kernel spins at most.
const SPIN: Duration = Duration::from_secs(60);

/// Which kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// Of the plugin, by its number.
    Plugin(u64),
    /// `gpu_sim_spin_until(struct { u64 address, at_least; })`: waits for a word.
    SpinUntil,
    /// `gpu_sim_fail(struct { u64 code; })`: fails with this code.
    Fail,
}

/// Blocks, threads of each, and its dynamic shared memory in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_memory: u32,
}

/// A kernel's parameter, aligned as any struct of device code may be.
#[derive(Clone)]
pub(crate) struct Parameter(Vec<Aligned>);

#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct Aligned([u8; 128]);

struct Plugin {
    find: Find,
    parameter_size: ParameterSize,
    global: Global,
    launch: Launch,
    /// Keeps the code mapped.
    _library: Library,
}

/// Loads the plugin if there is one.
pub(crate) fn check() -> Outcome {
    plugin().map(drop)
}

/// The kernel of a name.
pub(crate) fn find(name: &str) -> Outcome<Kernel> {
    if let Some(plugin) = plugin()? {
        let name = CString::new(name).map_err(|_| Code::ERROR_INVALID_VALUE)?;
        // SAFETY: the name ends with a NUL, which is all that a plugin's function asks for.
        let id = unsafe { (plugin.find)(name.as_ptr()) };
        if id != 0 {
            return Ok(Kernel::Plugin(id));
        }
    }
    match name {
        "gpu_sim_spin_until" => Ok(Kernel::SpinUntil),
        "gpu_sim_fail" => Ok(Kernel::Fail),
        _ => Err(Code::ERROR_NOT_FOUND),
    }
}

/// Address and size of a variable.
pub(crate) fn global(name: &str) -> Outcome<(usize, usize)> {
    let plugin = plugin()?.ok_or(Code::ERROR_NOT_FOUND)?;
    let name = CString::new(name).map_err(|_| Code::ERROR_INVALID_VALUE)?;
    let (mut address, mut bytes) = (std::ptr::null(), 0);
    // SAFETY: the name ends with a NUL, and both pointers are to live variables.
    let found = unsafe { (plugin.global)(name.as_ptr(), &raw mut address, &raw mut bytes) };
    found.then_some((address as usize, bytes)).ok_or(Code::ERROR_NOT_FOUND)
}

impl Kernel {
    /// Copies the one parameter that the launch's array points to.
    pub(crate) fn parameter(self, parameters: *const *const u8) -> Outcome<Parameter> {
        let size = match self {
            Self::SpinUntil => 16,
            Self::Fail => 8,
            Self::Plugin(id) => {
                let plugin = plugin()?.ok_or(Code::ERROR_INVALID_HANDLE)?;
                // SAFETY: the number is one that the plugin gave.
                unsafe { (plugin.parameter_size)(id) }
            }
        };
        let bytes = if size == 0 { Vec::new() } else { c::array(c::read(parameters)?, size)? };
        let chunk = |chunk: &[u8]| Aligned(std::array::from_fn(|at| chunk.get(at).copied().unwrap_or(0)));
        Ok(Parameter(bytes.chunks(128).map(chunk).collect()))
    }

    /// Runs it to its end.
    pub(crate) fn run(self, mut parameter: Parameter, shape: Shape) -> Outcome {
        match self {
            Self::SpinUntil => spin(parameter.word(0), parameter.word(1)),
            Self::Fail => Err(Code(u32::try_from(parameter.word(0)).unwrap_or(Code::ERROR_UNKNOWN.0))),
            Self::Plugin(id) => {
                let plugin = plugin()?.ok_or(Code::ERROR_INVALID_HANDLE)?;
                let pointers = [parameter.0.as_mut_ptr().cast::<c_void>()];
                let Shape { grid, block, shared_memory } = shape;
                // SAFETY: the parameter is as long as the plugin said, and lives until the call returns, as do the
                // extents; what addresses in the parameter point to is the launching program's business.
                let code = unsafe {
                    (plugin.launch)(id, pointers.as_ptr(), &raw const grid, &raw const block, shared_memory)
                };
                if code == 0 {
                    Ok(())
                } else {
                    Err(Code(u32::try_from(code).unwrap_or(Code::ERROR_UNKNOWN.0)))
                }
            }
        }
    }
}

impl Parameter {
    /// The `at`-th u64 of the first 16.
    fn word(&self, at: usize) -> u64 {
        let bytes = self.0.first().and_then(|chunk| chunk.0.get(8 * at..)?.first_chunk::<8>());
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }
}

fn spin(address: u64, at_least: u64) -> Outcome {
    let address = usize::try_from(address).map_err(|_| Code::ERROR_ILLEGAL_ADDRESS)?;
    let word = Word::new(address, 8).map_err(|_| Code::ERROR_ILLEGAL_ADDRESS)?;
    let deadline = Instant::now() + SPIN;
    let is_late = || Instant::now() > deadline;
    poll(|| word.load() >= at_least || context::has_failed() || is_late());
    if word.load() < at_least && is_late() { Err(Code::ERROR_LAUNCH_TIMEOUT) } else { Ok(()) }
}

/// The plugin, if the environment names one.
fn plugin() -> Outcome<Option<&'static Plugin>> {
    static PLUGIN: OnceLock<Result<Option<Plugin>, libloading::Error>> = OnceLock::new();
    let loaded = PLUGIN.get_or_init(|| {
        let file = config::kernels();
        let loaded = file.as_deref().map(load).transpose();
        if let (Err(error), Some(file)) = (&loaded, &file) {
            complain(file, error);
        }
        loaded
    });
    loaded.as_ref().map(Option::as_ref).map_err(|_| Code::ERROR_FILE_NOT_FOUND)
}

#[expect(clippy::print_stderr, reason = "a code alone does not say what is wrong with a plugin")]
fn complain(file: &Path, error: &libloading::Error) {
    let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    eprintln!("gpu-sim: GPU_SIM_KERNELS={} cannot be loaded: {why}", file.display());
}

fn load(file: &Path) -> Result<Plugin, libloading::Error> {
    // SAFETY: whoever sets the variable vouches that the file is a plugin, whose initialisers do no harm.
    let library = unsafe { Library::new(file) }?;
    // SAFETY: a plugin's function of this name has this type.
    let find = *unsafe { library.get::<Find>(b"gpu_sim_find\0") }?;
    // SAFETY: as before.
    let parameter_size = *unsafe { library.get::<ParameterSize>(b"gpu_sim_param_size\0") }?;
    // SAFETY: as before.
    let global = *unsafe { library.get::<Global>(b"gpu_sim_global\0") }?;
    // SAFETY: as before.
    let launch = *unsafe { library.get::<Launch>(b"gpu_sim_launch\0") }?;
    Ok(Plugin { find, parameter_size, global, launch, _library: library })
}
