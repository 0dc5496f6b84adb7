//! Functions of the NVSHMEM 3.4.5 host API, as a table to look up at run time.
// Made by `cargo xtask bindgen`; do not edit.
// recipe 1d1868d806c90439, headers c37e8d364e90bc34, text 7770cd6c77cd4bca
functions! {
    fn nvshmemx_init_status() -> ::core::ffi::c_int;
    fn nvshmem_my_pe() -> ::core::ffi::c_int;
    fn nvshmem_n_pes() -> ::core::ffi::c_int;
    fn nvshmem_info_get_version(major: *mut ::core::ffi::c_int, minor: *mut ::core::ffi::c_int);
    fn nvshmem_info_get_name(name: *mut ::core::ffi::c_char);
    fn nvshmemx_vendor_get_version_info(
        major: *mut ::core::ffi::c_int,
        minor: *mut ::core::ffi::c_int,
        patch: *mut ::core::ffi::c_int,
    );
    fn nvshmem_malloc(size: usize) -> *mut ::core::ffi::c_void;
    fn nvshmem_calloc(arg1: usize, arg2: usize) -> *mut ::core::ffi::c_void;
    fn nvshmem_align(arg1: usize, arg2: usize) -> *mut ::core::ffi::c_void;
    fn nvshmem_free(ptr: *mut ::core::ffi::c_void);
    fn nvshmem_ptr(ptr: *const ::core::ffi::c_void, pe: ::core::ffi::c_int) -> *mut ::core::ffi::c_void;
    fn nvshmem_quiet();
    fn nvshmem_fence();
    fn nvshmem_team_my_pe(team: nvshmem_team_t) -> ::core::ffi::c_int;
    fn nvshmem_team_n_pes(team: nvshmem_team_t) -> ::core::ffi::c_int;
    fn nvshmem_team_get_config(team: nvshmem_team_t, config: *mut nvshmem_team_config_t);
    fn nvshmem_team_translate_pe(
        src_team: nvshmem_team_t,
        src_pe: ::core::ffi::c_int,
        dest_team: nvshmem_team_t,
    ) -> ::core::ffi::c_int;
    fn nvshmem_team_split_strided(
        parent_team: nvshmem_team_t,
        PE_start: ::core::ffi::c_int,
        PE_stride: ::core::ffi::c_int,
        PE_size: ::core::ffi::c_int,
        config: *const nvshmem_team_config_t,
        config_mask: ::core::ffi::c_long,
        new_team: *mut nvshmem_team_t,
    ) -> ::core::ffi::c_int;
    fn nvshmem_team_destroy(team: nvshmem_team_t);
    fn nvshmem_barrier(team: nvshmem_team_t) -> ::core::ffi::c_int;
    fn nvshmem_barrier_all();
    fn nvshmem_team_sync(team: nvshmem_team_t) -> ::core::ffi::c_int;
    fn nvshmem_sync_all();
    fn nvshmemx_barrier_on_stream(team: nvshmem_team_t, stream: cudaStream_t) -> ::core::ffi::c_int;
    fn nvshmemx_barrier_all_on_stream(arg1: cudaStream_t);
    fn nvshmemx_team_sync_on_stream(team: nvshmem_team_t, stream: cudaStream_t) -> ::core::ffi::c_int;
    fn nvshmemx_sync_all_on_stream(arg1: cudaStream_t);
    fn nvshmemx_buffer_register(addr: *mut ::core::ffi::c_void, length: usize) -> ::core::ffi::c_int;
    fn nvshmemx_buffer_unregister(addr: *mut ::core::ffi::c_void) -> ::core::ffi::c_int;
    fn nvshmemx_buffer_unregister_all();
    fn nvshmemx_hostlib_init_attr(
        flags: ::core::ffi::c_uint,
        attr: *mut nvshmemx_init_attr_t,
    ) -> ::core::ffi::c_int;
    fn nvshmemx_hostlib_finalize();
    fn nvshmemx_set_attr_uniqueid_args(
        myrank: ::core::ffi::c_int,
        nranks: ::core::ffi::c_int,
        uniqueid: *const nvshmemx_uniqueid_t,
        attr: *mut nvshmemx_init_attr_t,
    ) -> ::core::ffi::c_int;
    fn nvshmemx_get_uniqueid(uniqueid: *mut nvshmemx_uniqueid_t) -> ::core::ffi::c_int;
    fn nvshmemx_cumodule_init(module: CUmodule) -> ::core::ffi::c_int;
    fn nvshmemx_cumodule_finalize(module: CUmodule) -> ::core::ffi::c_int;
    fn nvshmemx_buffer_register_symmetric(
        buf_ptr: *mut ::core::ffi::c_void,
        size: usize,
        flags: ::core::ffi::c_int,
    ) -> *mut ::core::ffi::c_void;
    fn nvshmemx_buffer_unregister_symmetric(
        mmap_ptr: *mut ::core::ffi::c_void,
        size: usize,
    ) -> ::core::ffi::c_int;
    fn nvshmemx_culibrary_init(library: CUlibrary) -> ::core::ffi::c_int;
    fn nvshmemx_culibrary_finalize(library: CUlibrary) -> ::core::ffi::c_int;
    fn nvshmemx_putmem_on_stream(
        dest: *mut ::core::ffi::c_void,
        source: *const ::core::ffi::c_void,
        bytes: usize,
        pe: ::core::ffi::c_int,
        cstrm: cudaStream_t,
    );
    fn nvshmemx_putmem_signal_on_stream(
        dest: *mut ::core::ffi::c_void,
        source: *const ::core::ffi::c_void,
        bytes: usize,
        sig_addr: *mut u64,
        signal: u64,
        sig_op: ::core::ffi::c_int,
        pe: ::core::ffi::c_int,
        cstrm: cudaStream_t,
    );
    fn nvshmemx_putmem_signal_nbi_on_stream(
        dest: *mut ::core::ffi::c_void,
        source: *const ::core::ffi::c_void,
        bytes: usize,
        sig_addr: *mut u64,
        signal: u64,
        sig_op: ::core::ffi::c_int,
        pe: ::core::ffi::c_int,
        cstrm: cudaStream_t,
    );
    fn nvshmemx_putmem_nbi_on_stream(
        dest: *mut ::core::ffi::c_void,
        source: *const ::core::ffi::c_void,
        bytes: usize,
        pe: ::core::ffi::c_int,
        cstrm: cudaStream_t,
    );
    fn nvshmemx_getmem_on_stream(
        dest: *mut ::core::ffi::c_void,
        source: *const ::core::ffi::c_void,
        bytes: usize,
        pe: ::core::ffi::c_int,
        cstrm: cudaStream_t,
    );
    fn nvshmemx_getmem_nbi_on_stream(
        dest: *mut ::core::ffi::c_void,
        source: *const ::core::ffi::c_void,
        bytes: usize,
        pe: ::core::ffi::c_int,
        cstrm: cudaStream_t,
    );
    fn nvshmemx_quiet_on_stream(cstrm: cudaStream_t);
    fn nvshmemx_signal_op_on_stream(
        sig_addr: *mut u64,
        signal: u64,
        sig_op: ::core::ffi::c_int,
        pe: ::core::ffi::c_int,
        cstrm: cudaStream_t,
    );
    fn nvshmemx_signal_wait_until_on_stream(
        sig_addr: *mut u64,
        cmp: ::core::ffi::c_int,
        cmp_value: u64,
        cstream: cudaStream_t,
    );
}
