//! With the feature `embed`: tells the compiler where the kernels' binaries are, or that they are missing.
use std::path::Path;

/// As `src/cuda/files.rs` includes them.
const FILES: [&str; 5] = [
    "fwd_d128_bf16.sm_90a.cubin",
    "fwd_d128_f16.sm_90a.cubin",
    "mask.sm_90a.cubin",
    "bwd_d128_bf16.sm_90a.cubin",
    "bwd_d128_f16.sm_90a.cubin",
];

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/kernels");
    println!("cargo::rerun-if-changed=build.rs");
    if cfg!(feature = "embed") {
        println!("cargo::rustc-env=FM3_KERNELS={}", folder.display());
        for path in FILES.map(|file| folder.join(file)) {
            println!("cargo::rerun-if-changed={}", path.display());
            if !path.is_file() {
                println!("cargo::error=no {}; run `cargo xtask build-kernels` first", path.display());
            }
        }
    }
}
