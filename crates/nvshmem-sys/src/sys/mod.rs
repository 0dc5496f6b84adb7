//! What NVSHMEM's headers declare, under C's names: [`types`] and the table of loaded functions, [`Api`].
//!
//! `types.rs` and `functions.rs` are made by `cargo xtask bindgen` from the headers of the wheel `nvidia-nvshmem-cu13`
//! and committed. What each function does is said in NVIDIA's
//! [API reference](https://docs.nvidia.com/nvshmem/api/index.html).
use std::ffi::CStr;

use libloading::os::unix::Library;

mod initializers;

pub use functions::Api;
pub use initializers::{
    init_args_initializer, init_attr_initializer, team_config_initializer, uniqueid_args_initializer,
    uniqueid_initializer,
};

/// Turns declarations into a table of pointers, looked up by name.
macro_rules! functions {
    ($(fn $name:ident($($parameter:ident: $type:ty),* $(,)?) $(-> $value:ty)?;)*) => {
        use super::types::*;

        /// Functions of one loaded library; they stay callable for as long as this value lives.
        #[derive(Debug)]
        #[expect(non_snake_case, reason = "parameters are called as in C")]
        pub struct Api {
            $(
                #[doc = concat!("`", stringify!($name), "` as the header declares it.")]
                pub $name: unsafe extern "C" fn($($parameter: $type),*) $(-> $value)?,
            )*
            /// Keeps the code mapped.
            _library: libloading::os::unix::Library,
        }

        impl Api {
            /// Names of all functions of the table.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Looks all of them up; the error is the first name that is not there.
            pub(crate) fn resolve(library: libloading::os::unix::Library) -> Result<Self, &'static str> {
                $(
                    // SAFETY: the field has the type that the header gives this function, and lives beside the
                    // library.
                    let $name = unsafe { super::symbol(&library, concat!(stringify!($name), "\0")) }
                        .ok_or(stringify!($name))?;
                )*
                Ok(Self { $($name,)* _library: library })
            }
        }
    };
}

mod functions;
#[allow(
    missing_docs,
    non_camel_case_types,
    reason = "C's names, and NVIDIA's documentation; which lints find something depends on what is bound"
)]
pub mod types;

/// Looks a function up; `name` ends with a NUL.
///
/// # Safety
/// `F` must be the type of that function, and may be called only while `library` lives.
pub(crate) unsafe fn symbol<F: Copy>(library: &Library, name: &'static str) -> Option<F> {
    let name = CStr::from_bytes_with_nul(name.as_bytes()).ok()?;
    // SAFETY: the caller vouches for the type.
    unsafe { library.get::<F>(name) }.ok().map(|found| *found)
}
