//! The headers' initialiser macros as const functions. Each structure starts with its layout's number and its size, by
//! which a library knows what its caller was built for.
use std::ffi::c_int;
use std::ptr;

use super::types::{
    TEAM_CONFIG_SCALAR_INVALID, UNIQUEID_ARGS_INVALID, nvshmem_team_config_t, nvshmemx_init_args_t,
    nvshmemx_init_attr_t, nvshmemx_uniqueid_args_t, nvshmemx_uniqueid_t,
};

// As the headers assert it.
const _: () = assert!(size_of::<nvshmemx_uniqueid_t>() == 128);
const _: () = assert!(size_of::<nvshmemx_uniqueid_args_t>() == 24);
const _: () = assert!(size_of::<nvshmemx_init_args_t>() == 128);
const _: () = assert!(size_of::<nvshmemx_init_attr_t>() == 144);
const _: () = assert!(size_of::<nvshmem_team_config_t>() == 64);

/// `NVSHMEMX_UNIQUEID_INITIALIZER`.
pub const fn uniqueid_initializer() -> nvshmemx_uniqueid_t {
    nvshmemx_uniqueid_t { version: version::<nvshmemx_uniqueid_t>(1), internal: [0; 124] }
}

/// `NVSHMEMX_UNIQUEID_ARGS_INITIALIZER`.
pub const fn uniqueid_args_initializer() -> nvshmemx_uniqueid_args_t {
    nvshmemx_uniqueid_args_t {
        version: version::<nvshmemx_uniqueid_args_t>(1),
        id: ptr::null_mut(),
        myrank: UNIQUEID_ARGS_INVALID,
        nranks: UNIQUEID_ARGS_INVALID,
    }
}

/// `NVSHMEMX_INIT_ARGS_INITIALIZER`.
pub const fn init_args_initializer() -> nvshmemx_init_args_t {
    nvshmemx_init_args_t {
        version: version::<nvshmemx_init_args_t>(1),
        uid_args: uniqueid_args_initializer(),
        content: [0; 96],
    }
}

/// `NVSHMEMX_INIT_ATTR_INITIALIZER`.
pub const fn init_attr_initializer() -> nvshmemx_init_attr_t {
    nvshmemx_init_attr_t {
        version: version::<nvshmemx_init_attr_t>(1),
        mpi_comm: ptr::null_mut(),
        args: init_args_initializer(),
    }
}

/// `NVSHMEM_TEAM_CONFIG_INITIALIZER`; its unique id is `TEAM_ULSCALAR_INVALID`, all ones.
pub const fn team_config_initializer() -> nvshmem_team_config_t {
    nvshmem_team_config_t {
        version: version::<nvshmem_team_config_t>(2),
        num_contexts: TEAM_CONFIG_SCALAR_INVALID,
        uniqueid: u64::MAX,
        padding: [0; 48],
    }
}

/// `(layout << 16) + sizeof(T)`.
const fn version<T>(layout: c_int) -> c_int {
    assert!(size_of::<T>() < 1 << 16);
    #[expect(clippy::cast_possible_truncation, reason = "just checked")]
    let size = size_of::<T>() as c_int;
    (layout << 16) + size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_what_the_c_macros_give() {
        // Worked out by hand from the headers' `(n << 16) + sizeof(...)`.
        assert_eq!(uniqueid_initializer().version, 0x1_0080);
        assert_eq!(uniqueid_args_initializer().version, 0x1_0018);
        assert_eq!(init_args_initializer().version, 0x1_0080);
        let attr = init_attr_initializer();
        assert_eq!((attr.version, attr.args.uid_args.version), (0x1_0090, 0x1_0018));
        assert_eq!((attr.args.uid_args.myrank, attr.args.uid_args.nranks), (-1, -1));
        assert!(attr.args.uid_args.id.is_null() && attr.mpi_comm.is_null());
        let team = team_config_initializer();
        assert_eq!((team.version, team.num_contexts, team.uniqueid), (0x2_0040, -1, u64::MAX));
    }
}
