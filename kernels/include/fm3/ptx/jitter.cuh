// Random pauses at every hand-over, in builds with -DFM3_JITTER=<seed>: they find missing waits, which tools do not.
#pragma once
#include <cstdint>

namespace fm3 {

__device__ __forceinline__ void jitter() {
#ifdef FM3_JITTER
    uint32_t clock;
    asm volatile("mov.u32 %0, %%clock;" : "=r"(clock));
    uint32_t hash = (clock ^ (threadIdx.x >> 5) * 0x9E3779B9u ^ blockIdx.x * 0x85EBCA6Bu ^ (FM3_JITTER)) * 0xC2B2AE35u;
    hash ^= hash >> 15;
    // One pause in four, up to 2 us, the same for the lanes of a warp.
    hash = __shfl_sync(__activemask(), hash, __ffs(__activemask()) - 1);
    if ((hash & 3) == 0) {
        __nanosleep((hash >> 8) & 2047);
    }
#endif
}

}  // namespace fm3
