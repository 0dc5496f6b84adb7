// Bulk copies between global and shared memory (PTX ISA, "cp.async.bulk", "cp.async.bulk.tensor").
#pragma once
#include <cstdint>

#include "fm3/generated/params.h"

namespace fm3 {

// How long L2 keeps what a copy reads or adds to, as the 64-bit policies that CUTLASS's TMA::CacheHintSm90 lists.
enum class Keep : uint64_t {
    kShort = 0x12F0000000000000ull,
    kLong = 0x14F0000000000000ull,
};

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

struct Coordinates4 {
    int32_t column, row, head, batch;
};

struct Coordinates5 {
    int32_t column, row, head, group, slab;
};

__device__ __forceinline__ void load_box(
    uint32_t shared, const TensorMap& map, uint32_t barrier, const Coordinates4& at, Keep keep) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared),
        "l"(&map), "r"(barrier), "r"(at.column), "r"(at.row), "r"(at.head), "r"(at.batch),
        "l"(static_cast<uint64_t>(keep))
        : "memory");
}

__device__ __forceinline__ void load_box(
    uint32_t shared, const TensorMap& map, uint32_t barrier, const Coordinates5& at, Keep keep) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
        "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(shared),
        "l"(&map), "r"(barrier), "r"(at.column), "r"(at.row), "r"(at.head), "r"(at.group), "r"(at.slab),
        "l"(static_cast<uint64_t>(keep))
        : "memory");
}

// Contiguous bytes; size and both addresses are multiples of 16.
__device__ __forceinline__ void load_bytes(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared),
        "l"(global), "r"(bytes), "r"(barrier)
        : "memory");
}

// Rows and columns outside the map are not written.
__device__ __forceinline__ void store_box(const TensorMap& map, uint32_t shared, const Coordinates4& at) {
    asm volatile(
        "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
        "r"(shared), "r"(at.column), "r"(at.row), "r"(at.head), "r"(at.batch)
        : "memory");
}

__device__ __forceinline__ void store_box(const TensorMap& map, uint32_t shared, const Coordinates5& at) {
    asm volatile(
        "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
        "r"(shared), "r"(at.column), "r"(at.row), "r"(at.head), "r"(at.group), "r"(at.slab)
        : "memory");
}

// Adds f32 values to global memory; size and both addresses are multiples of 16.
__device__ __forceinline__ void add_floats(float* global, uint32_t shared, uint32_t bytes, Keep keep) {
    asm volatile(
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add.f32 [%0], [%1], %2, %3;" ::"l"(global),
        "r"(shared), "r"(bytes), "l"(static_cast<uint64_t>(keep))
        : "memory");
}

__device__ __forceinline__ void store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until all but the newest `kNewest` groups of this thread's stores have read their shared memory.
template <int kNewest>
__device__ __forceinline__ void store_wait_read_all_but() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kNewest) : "memory");
}

__device__ __forceinline__ void store_wait_read() {
    store_wait_read_all_but<0>();
}

// Until this thread's stores are written.
__device__ __forceinline__ void store_wait() {
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// Orders ordinary writes to shared memory before copies and matrix products that read it; each writing thread.
__device__ __forceinline__ void fence_shared_to_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Orders what an acquire made visible before later copies that read global memory.
__device__ __forceinline__ void fence_global_to_async() {
    asm volatile("fence.proxy.async.global;" ::: "memory");
}

}  // namespace fm3
