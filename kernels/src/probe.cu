// Probes: copies by multiprocessors, a kernel that fills the device, answers to signals, and proof that what a signal
// promises is there. For measurements and tests; attention does not use them.
#include <cstdint>

#include "fm3/generated/params.h"
#include "fm3/ptx/signal.cuh"

extern "C" __device__ const unsigned long long fm3_abi_hash = FM3_ABI_HASH;

namespace fm3 {

__device__ __forceinline__ void store_release_system(uint64_t* word, uint64_t value) {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

__device__ __forceinline__ uint64_t* words_at(uint64_t address) { return reinterpret_cast<uint64_t*>(address); }

// As `pattern` of the crate fm3-kernels.
__device__ __forceinline__ uint32_t pattern(uint32_t source, uint32_t index) {
    const uint32_t mixed = (index * 0x9E3779B9u) ^ (source * 0x85EBCA6Bu + 0x27D4EB2Fu);
    return mixed ^ (mixed >> 15);
}

__device__ __forceinline__ bool reached(uint64_t word, uint64_t wanted, uint64_t deadline_ns) {
    return spin_until_at_least(words_at(word), wanted, StopWords{nullptr, nullptr}, deadline_ns).reached;
}

}  // namespace fm3

extern "C" __global__ void __launch_bounds__(512) fm3_probe_copy(const __grid_constant__ fm3::ProbeCopyParams p) {
    const auto* src = reinterpret_cast<const uint4*>(p.src);
    auto* dst = reinterpret_cast<uint4*>(p.dst);
    const uint64_t count = p.bytes / sizeof(uint4);
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    uint64_t at = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    // Four loads under way in each thread: one alone does not fill the link.
    for (; at + 3 * step < count; at += 4 * step) {
        const uint4 a = src[at], b = src[at + step], c = src[at + 2 * step], d = src[at + 3 * step];
        dst[at] = a;
        dst[at + step] = b;
        dst[at + 2 * step] = c;
        dst[at + 3 * step] = d;
    }
    for (; at < count; at += step) {
        dst[at] = src[at];
    }
}

extern "C" __global__ void fm3_probe_hold(const __grid_constant__ fm3::ProbeHoldParams p) {
    if (threadIdx.x == 0) {
        fm3::reached(p.word, p.at_least, p.deadline_ns);
    }
}

extern "C" __global__ void fm3_probe_echo(const __grid_constant__ fm3::ProbeEchoParams p) {
    for (uint64_t round = 1; round <= p.rounds; ++round) {
        if (!fm3::reached(p.word, p.base + round, p.deadline_ns)) {
            return;
        }
        fm3::store_release_system(fm3::words_at(p.reply), p.base + round);
    }
}

extern "C" __global__ void fm3_probe_clock(const __grid_constant__ fm3::ProbeClockParams p) {
    for (uint64_t round = 1; round <= p.rounds; ++round) {
        if (!fm3::reached(p.word, round, p.deadline_ns)) {
            return;
        }
        fm3::store_release_system(fm3::words_at(p.replies) + round - 1, fm3::global_nanoseconds());
    }
}

extern "C" __global__ void __launch_bounds__(512) fm3_probe_check(const __grid_constant__ fm3::ProbeCheckParams p) {
    uint64_t* const found = fm3::words_at(p.found);
    __shared__ bool there;
    if (blockIdx.x != 0) {
        if (threadIdx.x == 0) {
            // Block 0 ends by its deadlines, so this does.
            fm3::reached(p.found, 1, 0);
        }
        return;
    }
    uint32_t wrong = 0;
    uint64_t first = 0;
    for (uint64_t round = 0; round < p.rounds; ++round) {
        if (threadIdx.x == 0) {
            there = fm3::reached(p.ready, p.base + round + 1, p.deadline_ns);
        }
        // What thread 0 has acquired is visible to all behind the barrier.
        __syncthreads();
        if (!there) {
            break;
        }
        const auto* slot = reinterpret_cast<const uint32_t*>(p.slots + (round % 2) * p.slot_bytes);
        const uint32_t source = static_cast<uint32_t>(round % p.sources);
        const uint32_t before = wrong;
        for (uint32_t at = threadIdx.x; at < p.slot_bytes / sizeof(uint32_t); at += blockDim.x) {
            wrong += slot[at] != fm3::pattern(source, at);
        }
        first = wrong != before && first == 0 ? round + 1 : first;
        __syncthreads();
        if (threadIdx.x == 0) {
            // Released after all reads of the block, by the barrier before it.
            fm3::store_release_system(fm3::words_at(p.free), p.base + round + 1);
            found[1] = round + 1;
        }
    }
    if (wrong != 0) {
        atomicAdd(reinterpret_cast<unsigned long long*>(found + 2), static_cast<unsigned long long>(wrong));
        atomicMax(reinterpret_cast<unsigned long long*>(found + 3), static_cast<unsigned long long>(first));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        // Also after a deadline: the others may go.
        fm3::store_release_system(found, 1);
    }
}
