//! What is bound, from which headers, by which bindgen: all that decides what the generated files say.
use xxhash_rust::xxh3::xxh3_64;

use crate::build_kernels::wheels;

/// Version of the headers; they come from the wheel of the same version.
pub(super) const NVSHMEM: &str = wheels::NVSHMEM.1;

/// bindgen's version, as in `xtask/Cargo.toml`.
pub(super) const BINDGEN: &str = "0.72";

/// Name, version and SHA-256 of the wheel with the headers and of the one with libclang, both for x86-64 Linux.
pub(super) const WHEELS: [(&str, &str, &str); 2] = [
    wheels::NVSHMEM,
    ("libclang", "18.1.1", "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b"),
];

/// Stands for every header of [`REPLACED`].
pub(super) const HOST_HEADER: &str = include_str!("host.h");

/// Headers of CUDA and of C that NVSHMEM's include.
pub(super) const REPLACED: [&str; 11] = [
    "cuda.h",
    "cuda_bf16.h",
    "cuda_fp16.h",
    "cuda_runtime.h",
    "errno.h",
    "limits.h",
    "stddef.h",
    "stdint.h",
    "stdio.h",
    "stdlib.h",
    "string.h",
];

/// Functions of the host API, as regular expressions, by subject.
pub(super) const FUNCTIONS: [&str; 9] = [
    "nvshmem_info_get_(name|version)|nvshmemx_vendor_get_version_info",
    "nvshmemx_(get_uniqueid|set_attr_uniqueid_args|hostlib_init_attr|init_status|hostlib_finalize)",
    "nvshmem_(my_pe|n_pes|malloc|calloc|align|free|ptr)",
    "nvshmem_team_(my_pe|n_pes|get_config|translate_pe|split_strided|destroy|sync)",
    "nvshmem_(barrier|barrier_all|sync_all|quiet|fence)",
    "nvshmemx_(barrier|barrier_all|team_sync|sync_all|quiet)_on_stream",
    "nvshmemx_(put|get)mem(_nbi)?_on_stream",
    "nvshmemx_putmem_signal(_nbi)?_on_stream|nvshmemx_signal_(op|wait_until)_on_stream",
    "nvshmemx_buffer_(un)?register(_all|_symmetric)?|nvshmemx_cu(module|library)_(init|finalize)",
];

/// Types that no function names: enumerations whose values are arguments or results.
pub(super) const TYPES: [&str; 5] =
    ["flags", "nvshmem_team_id_t", "nvshmemx_cmp_type_t", "nvshmemx_init_status_t", "nvshmemx_signal_op_t"];

/// Macros that are numbers.
pub(super) const CONSTANTS: [&str; 3] = [
    "NVSHMEM_(VENDOR_(MAJOR|MINOR|PATCH)_VERSION|MAX_NAME_LEN)",
    "(UNIQUEID_ARGS|TEAM_CONFIG_SCALAR|TEAM_ULSCALAR)_INVALID",
    "NVSHMEM_TEAM_CONFIG_MASK_.*",
];

/// Hash of all of the above.
pub(super) fn hash() -> u64 {
    let lists = [&FUNCTIONS[..], &TYPES, &CONSTANTS, &REPLACED].map(|list| list.join("\n"));
    let text =
        [NVSHMEM, BINDGEN, HOST_HEADER, WHEELS[1].1].into_iter().chain(lists.iter().map(String::as_str));
    xxh3_64(text.collect::<Vec<_>>().join("\n\n").as_bytes())
}
