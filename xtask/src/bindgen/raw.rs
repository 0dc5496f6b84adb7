//! bindgen's own output, as text. Only the feature `bindgen` has it: it needs libclang and much compile time, and what
//! it makes is committed.
use std::path::Path;

/// Bindings of the headers in `include`, with the replacements in `replaced`.
///
/// # Errors
/// When libclang cannot be loaded or does not understand the headers.
#[cfg(feature = "bindgen")]
pub(super) fn bindings(include: &Path, replaced: &Path) -> anyhow::Result<String> {
    use super::recipe::{CONSTANTS, FUNCTIONS, TYPES};
    let folder = |path: &Path| format!("-I{}", path.display());
    let mut builder = bindgen::Builder::default()
        .header(include.join("nvshmem_host.h").to_string_lossy())
        .clang_args(["-x", "c", "-nostdinc", "--target=x86_64-unknown-linux-gnu"])
        .clang_args([folder(replaced), folder(include)])
        .rustfmt_configuration_file(Some(crate::files::workspace_root().join("rustfmt.toml")))
        .generate_comments(false)
        .disable_header_comment()
        .merge_extern_blocks(true)
        .prepend_enum_name(false)
        .use_core();
    for names in FUNCTIONS {
        builder = builder.allowlist_function(names);
    }
    for names in TYPES {
        builder = builder.allowlist_type(names);
    }
    for names in CONSTANTS {
        builder = builder.allowlist_var(names);
    }
    Ok(builder.generate()?.to_string())
}

/// Says that this program was built without it.
///
/// # Errors
/// Always.
#[cfg(not(feature = "bindgen"))]
pub(super) fn bindings(_include: &Path, _replaced: &Path) -> anyhow::Result<String> {
    anyhow::bail!("built without bindgen; `cargo xtask bindgen` builds it in by itself")
}
