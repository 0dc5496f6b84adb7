//! What the environment says, read when first asked for.
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

/// Devices of this process (`GPU_SIM_DEVICES`, default 1).
pub(crate) fn devices() -> i32 {
    static VALUE: OnceLock<i32> = OnceLock::new();
    *VALUE.get_or_init(|| number("GPU_SIM_DEVICES").unwrap_or(1))
}

/// Hardware connections (`CUDA_DEVICE_MAX_CONNECTIONS`, default 8, at most 32).
pub(crate) fn connections() -> usize {
    static VALUE: OnceLock<usize> = OnceLock::new();
    *VALUE.get_or_init(|| number("CUDA_DEVICE_MAX_CONNECTIONS").unwrap_or(8).clamp(1, 32))
}

/// Bytes of a device (`GPU_SIM_MEMORY`, default 16 GiB).
pub(crate) fn memory() -> usize {
    static VALUE: OnceLock<usize> = OnceLock::new();
    *VALUE.get_or_init(|| bytes("GPU_SIM_MEMORY").unwrap_or(16 << 30))
}

/// Whether new device memory is filled with 0xFF (`GPU_SIM_POISON`, default yes).
pub(crate) fn poison() -> bool {
    static VALUE: OnceLock<bool> = OnceLock::new();
    *VALUE.get_or_init(|| number("GPU_SIM_POISON") != Some(0))
}

/// Whether all processes share one GPU (`GPU_SIM_ONE_GPU`, default no: each has its own).
pub(crate) fn one_gpu() -> bool {
    static VALUE: OnceLock<bool> = OnceLock::new();
    *VALUE.get_or_init(|| number("GPU_SIM_ONE_GPU") == Some(1))
}

/// The plugin that has the kernels (`GPU_SIM_KERNELS`).
pub(crate) fn kernels() -> Option<PathBuf> {
    variable("GPU_SIM_KERNELS").map(PathBuf::from)
}

/// Bytes of the symmetric heap (`NVSHMEM_SYMMETRIC_SIZE`, default 1 GiB).
pub(crate) fn symmetric_size() -> usize {
    bytes("NVSHMEM_SYMMETRIC_SIZE").unwrap_or(1 << 30)
}

/// How long a rank takes to start NVSHMEM, in the middle of it (`GPU_SIM_START_MS`, default 0).
pub(crate) fn start_time() -> Duration {
    Duration::from_millis(number("GPU_SIM_START_MS").unwrap_or(0))
}

/// Whether NVSHMEM has a proxy thread, as on a machine with network adapters (no, if `NVSHMEM_REMOTE_TRANSPORT` is `none`
/// and `NVSHMEM_DISABLE_LOCAL_ONLY_PROXY` is 1).
pub(crate) fn has_proxy() -> bool {
    let is_local = variable("NVSHMEM_REMOTE_TRANSPORT").is_some_and(|name| name == "none");
    !is_local || number("NVSHMEM_DISABLE_LOCAL_ONLY_PROXY") != Some(1)
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    variable(name)?.trim().parse().ok()
}

fn bytes(name: &str) -> Option<usize> {
    parse_bytes(&variable(name)?)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a simulated library reads its own variables, as the real ones do"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A count of bytes, perhaps with a fraction, and perhaps with a suffix: `2097152`, `512M`, `1.5g`.
fn parse_bytes(text: &str) -> Option<usize> {
    let text = text.trim();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let power = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" => 10,
        "m" | "mb" => 20,
        "g" | "gb" => 30,
        "t" | "tb" => 40,
        _ => return None,
    };
    let scaled = digits.parse::<f64>().ok()?
        * f64::from(1_u32 << (power % 30))
        * if power >= 30 { 1073741824.0 } else { 1.0 };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked against the range")]
    (0.0..=1e15).contains(&scaled).then_some(scaled as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_suffixes() {
        let sizes = ["4096", "64K", "512m", "1.5G", " 1GB ", "1T"].map(parse_bytes);
        assert_eq!(sizes, [4096, 64 << 10, 512 << 20, 3 << 29, 1 << 30, 1 << 40].map(Some));
        assert_eq!(["", "G", "1X", "-1"].map(parse_bytes), [None; 4]);
    }
}
