//! Types and constants of the NVSHMEM 3.4.5 host API.
// Made by `cargo xtask bindgen`; do not edit.
// recipe 1d1868d806c90439, headers c37e8d364e90bc34, text 35217e565d9291f9
pub const TEAM_CONFIG_SCALAR_INVALID: i32 = -1;
pub const TEAM_ULSCALAR_INVALID: i32 = -1;
pub const UNIQUEID_ARGS_INVALID: i32 = -1;
pub const NVSHMEM_TEAM_CONFIG_MASK_NUM_CONTEXTS: u32 = 1;
pub const NVSHMEM_TEAM_CONFIG_MASK_UNIQUEID: u32 = 2;
pub const NVSHMEM_VENDOR_MAJOR_VERSION: u32 = 3;
pub const NVSHMEM_VENDOR_MINOR_VERSION: u32 = 4;
pub const NVSHMEM_VENDOR_PATCH_VERSION: u32 = 5;
pub const NVSHMEM_MAX_NAME_LEN: u32 = 256;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CUstream_st {
    _unused: [u8; 0],
}
pub type cudaStream_t = *mut CUstream_st;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CUmod_st {
    _unused: [u8; 0],
}
pub type CUmodule = *mut CUmod_st;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CUlib_st {
    _unused: [u8; 0],
}
pub type CUlibrary = *mut CUlib_st;
pub const NVSHMEM_SIGNAL_SET: nvshmemx_signal_op_t = 9;
pub const NVSHMEM_SIGNAL_ADD: nvshmemx_signal_op_t = 10;
pub type nvshmemx_signal_op_t = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvshmemx_uniqueid_v1 {
    pub version: ::core::ffi::c_int,
    pub internal: [::core::ffi::c_char; 124usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvshmemx_uniqueid_v1"][::core::mem::size_of::<nvshmemx_uniqueid_v1>() - 128usize];
    ["Alignment of nvshmemx_uniqueid_v1"][::core::mem::align_of::<nvshmemx_uniqueid_v1>() - 4usize];
    ["Offset of field: nvshmemx_uniqueid_v1::version"]
        [::core::mem::offset_of!(nvshmemx_uniqueid_v1, version) - 0usize];
    ["Offset of field: nvshmemx_uniqueid_v1::internal"]
        [::core::mem::offset_of!(nvshmemx_uniqueid_v1, internal) - 4usize];
};
pub type nvshmemx_uniqueid_t = nvshmemx_uniqueid_v1;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvshmemx_uniqueid_args_v1 {
    pub version: ::core::ffi::c_int,
    pub id: *mut nvshmemx_uniqueid_v1,
    pub myrank: ::core::ffi::c_int,
    pub nranks: ::core::ffi::c_int,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvshmemx_uniqueid_args_v1"][::core::mem::size_of::<nvshmemx_uniqueid_args_v1>() - 24usize];
    ["Alignment of nvshmemx_uniqueid_args_v1"][::core::mem::align_of::<nvshmemx_uniqueid_args_v1>() - 8usize];
    ["Offset of field: nvshmemx_uniqueid_args_v1::version"]
        [::core::mem::offset_of!(nvshmemx_uniqueid_args_v1, version) - 0usize];
    ["Offset of field: nvshmemx_uniqueid_args_v1::id"]
        [::core::mem::offset_of!(nvshmemx_uniqueid_args_v1, id) - 8usize];
    ["Offset of field: nvshmemx_uniqueid_args_v1::myrank"]
        [::core::mem::offset_of!(nvshmemx_uniqueid_args_v1, myrank) - 16usize];
    ["Offset of field: nvshmemx_uniqueid_args_v1::nranks"]
        [::core::mem::offset_of!(nvshmemx_uniqueid_args_v1, nranks) - 20usize];
};
pub type nvshmemx_uniqueid_args_t = nvshmemx_uniqueid_args_v1;
pub type nvshmemx_team_uniqueid_t = u64;
pub type nvshmem_team_t = i32;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvshmemx_init_args_v1 {
    pub version: ::core::ffi::c_int,
    pub uid_args: nvshmemx_uniqueid_args_t,
    pub content: [::core::ffi::c_char; 96usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvshmemx_init_args_v1"][::core::mem::size_of::<nvshmemx_init_args_v1>() - 128usize];
    ["Alignment of nvshmemx_init_args_v1"][::core::mem::align_of::<nvshmemx_init_args_v1>() - 8usize];
    ["Offset of field: nvshmemx_init_args_v1::version"]
        [::core::mem::offset_of!(nvshmemx_init_args_v1, version) - 0usize];
    ["Offset of field: nvshmemx_init_args_v1::uid_args"]
        [::core::mem::offset_of!(nvshmemx_init_args_v1, uid_args) - 8usize];
    ["Offset of field: nvshmemx_init_args_v1::content"]
        [::core::mem::offset_of!(nvshmemx_init_args_v1, content) - 32usize];
};
pub type nvshmemx_init_args_t = nvshmemx_init_args_v1;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvshmemx_init_attr_v1 {
    pub version: ::core::ffi::c_int,
    pub mpi_comm: *mut ::core::ffi::c_void,
    pub args: nvshmemx_init_args_t,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvshmemx_init_attr_v1"][::core::mem::size_of::<nvshmemx_init_attr_v1>() - 144usize];
    ["Alignment of nvshmemx_init_attr_v1"][::core::mem::align_of::<nvshmemx_init_attr_v1>() - 8usize];
    ["Offset of field: nvshmemx_init_attr_v1::version"]
        [::core::mem::offset_of!(nvshmemx_init_attr_v1, version) - 0usize];
    ["Offset of field: nvshmemx_init_attr_v1::mpi_comm"]
        [::core::mem::offset_of!(nvshmemx_init_attr_v1, mpi_comm) - 8usize];
    ["Offset of field: nvshmemx_init_attr_v1::args"]
        [::core::mem::offset_of!(nvshmemx_init_attr_v1, args) - 16usize];
};
pub type nvshmemx_init_attr_t = nvshmemx_init_attr_v1;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nvshmem_team_config_v2 {
    pub version: ::core::ffi::c_int,
    pub num_contexts: ::core::ffi::c_int,
    pub uniqueid: nvshmemx_team_uniqueid_t,
    pub padding: [::core::ffi::c_char; 48usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nvshmem_team_config_v2"][::core::mem::size_of::<nvshmem_team_config_v2>() - 64usize];
    ["Alignment of nvshmem_team_config_v2"][::core::mem::align_of::<nvshmem_team_config_v2>() - 8usize];
    ["Offset of field: nvshmem_team_config_v2::version"]
        [::core::mem::offset_of!(nvshmem_team_config_v2, version) - 0usize];
    ["Offset of field: nvshmem_team_config_v2::num_contexts"]
        [::core::mem::offset_of!(nvshmem_team_config_v2, num_contexts) - 4usize];
    ["Offset of field: nvshmem_team_config_v2::uniqueid"]
        [::core::mem::offset_of!(nvshmem_team_config_v2, uniqueid) - 8usize];
    ["Offset of field: nvshmem_team_config_v2::padding"]
        [::core::mem::offset_of!(nvshmem_team_config_v2, padding) - 16usize];
};
pub type nvshmem_team_config_t = nvshmem_team_config_v2;
pub const NVSHMEM_CMP_EQ: nvshmemi_cmp_type = 0;
pub const NVSHMEM_CMP_NE: nvshmemi_cmp_type = 1;
pub const NVSHMEM_CMP_GT: nvshmemi_cmp_type = 2;
pub const NVSHMEM_CMP_LE: nvshmemi_cmp_type = 3;
pub const NVSHMEM_CMP_LT: nvshmemi_cmp_type = 4;
pub const NVSHMEM_CMP_GE: nvshmemi_cmp_type = 5;
pub const NVSHMEM_CMP_SENTINEL: nvshmemi_cmp_type = 2147483647;
pub type nvshmemi_cmp_type = ::core::ffi::c_uint;
pub use self::nvshmemi_cmp_type as nvshmemx_cmp_type_t;
pub const NVSHMEM_STATUS_NOT_INITIALIZED: nvshmemx_init_status_t = 0;
pub const NVSHMEM_STATUS_IS_BOOTSTRAPPED: nvshmemx_init_status_t = 1;
pub const NVSHMEM_STATUS_IS_INITIALIZED: nvshmemx_init_status_t = 2;
pub const NVSHMEM_STATUS_LIMITED_MPG: nvshmemx_init_status_t = 3;
pub const NVSHMEM_STATUS_FULL_MPG: nvshmemx_init_status_t = 4;
pub const NVSHMEM_STATUS_INVALID: nvshmemx_init_status_t = 2147483647;
pub type nvshmemx_init_status_t = ::core::ffi::c_uint;
pub const NVSHMEM_TEAM_INVALID: nvshmem_team_id_t = -1;
pub const NVSHMEM_TEAM_WORLD: nvshmem_team_id_t = 0;
pub const NVSHMEM_TEAM_WORLD_INDEX: nvshmem_team_id_t = 0;
pub const NVSHMEM_TEAM_SHARED: nvshmem_team_id_t = 1;
pub const NVSHMEM_TEAM_SHARED_INDEX: nvshmem_team_id_t = 1;
pub const NVSHMEMX_TEAM_NODE: nvshmem_team_id_t = 2;
pub const NVSHMEM_TEAM_NODE_INDEX: nvshmem_team_id_t = 2;
pub const NVSHMEMX_TEAM_SAME_MYPE_NODE: nvshmem_team_id_t = 3;
pub const NVSHMEM_TEAM_SAME_MYPE_NODE_INDEX: nvshmem_team_id_t = 3;
pub const NVSHMEMI_TEAM_SAME_GPU: nvshmem_team_id_t = 4;
pub const NVSHMEM_TEAM_SAME_GPU_INDEX: nvshmem_team_id_t = 4;
pub const NVSHMEMI_TEAM_GPU_LEADERS: nvshmem_team_id_t = 5;
pub const NVSHMEM_TEAM_GPU_LEADERS_INDEX: nvshmem_team_id_t = 5;
pub const NVSHMEM_TEAMS_MIN: nvshmem_team_id_t = 6;
pub const NVSHMEM_TEAM_INDEX_MAX: nvshmem_team_id_t = 2147483647;
pub type nvshmem_team_id_t = ::core::ffi::c_int;
pub const NVSHMEMX_INIT_THREAD_PES: flags = 1;
pub const NVSHMEMX_INIT_WITH_MPI_COMM: flags = 2;
pub const NVSHMEMX_INIT_WITH_SHMEM: flags = 4;
pub const NVSHMEMX_INIT_WITH_UNIQUEID: flags = 8;
pub const NVSHMEMX_INIT_MAX: flags = -2147483648;
pub type flags = ::core::ffi::c_int;
