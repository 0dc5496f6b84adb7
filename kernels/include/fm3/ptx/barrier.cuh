// mbarriers (PTX ISA, "mbarrier") and named barriers ("bar"). Addresses are 32-bit shared-memory addresses.
#pragma once
#include <cstdint>

#include "fm3/ptx/jitter.cuh"

namespace fm3 {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine; a __syncthreads() must follow.
__device__ __forceinline__ void barrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// One arrival that also announces `bytes` of copies; the phase completes when they have landed.
__device__ __forceinline__ void barrier_expect_bytes(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Release at CTA scope.
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    jitter();
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Acquire at CTA scope. All waits in one CTA are on its own copies and warps: no deadline (protocol rule D1).
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    jitter();
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Named barrier: waits until `threads` threads came, arrivals included.
__device__ __forceinline__ void named_sync(uint32_t id, uint32_t threads) {
    jitter();
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_arrive(uint32_t id, uint32_t threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Position in a ring of `kStages` buffers. A consumer starts at parity 0. A producer starts at parity 1, which a
// fresh barrier has already completed.
template <int kStages>
struct RingPosition {
    uint32_t stage;
    uint32_t parity;

    __device__ __forceinline__ void advance() {
        if (++stage == kStages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

}  // namespace fm3
