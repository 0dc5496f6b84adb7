// Signals between ranks, clocks, and the one spin of the device side (docs/protocol.md, S2 and D1).
#pragma once
#include <cstdint>

namespace fm3 {

__device__ __forceinline__ uint64_t load_acquire_system(const uint64_t* word) {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

__device__ __forceinline__ uint32_t load_relaxed_system(const uint32_t* word) {
    uint32_t value;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}

// Between the blocks of one device.
__device__ __forceinline__ uint32_t load_acquire_device(const uint32_t* word) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
    return value;
}

__device__ __forceinline__ void store_release_device(uint32_t* word, uint32_t value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

__device__ __forceinline__ void store_relaxed_device(uint32_t* word, uint32_t value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(value) : "memory");
}

__device__ __forceinline__ uint64_t global_nanoseconds() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Words that end a wait when they are not zero; null: no such word.
struct StopWords {
    const uint32_t* abort;    // may lie in the host's memory
    const uint32_t* expired;  // somebody's wait outlasted the deadline

    __device__ __forceinline__ bool set() const {
        return (expired != nullptr && load_relaxed_system(expired) != 0) ||
               (abort != nullptr && load_relaxed_system(abort) != 0);
    }
};

struct SpinOutcome {
    bool reached;
    bool expired;  // false with `reached` false: a stop word was set
    uint64_t seen;
    uint64_t waited_ns;
};

// Polls until `*word >= wanted`, a stop word is set or `deadline_ns` have passed (0: no deadline).
__device__ __forceinline__ SpinOutcome spin_until_at_least(
    const uint64_t* word, uint64_t wanted, const StopWords& stop, uint64_t deadline_ns) {
    uint64_t seen = load_acquire_system(word);
    if (seen >= wanted) {
        return {true, false, seen, 0};
    }
    const uint64_t start = global_nanoseconds();
    for (uint32_t poll = 1;; ++poll) {
        __nanosleep(64);
        seen = load_acquire_system(word);
        const uint64_t waited = global_nanoseconds() - start;
        if (seen >= wanted) {
            return {true, false, seen, waited};
        }
        if (poll % 64 == 0 && stop.set()) {
            return {false, false, seen, waited};
        }
        if (deadline_ns != 0 && waited > deadline_ns) {
            return {false, true, seen, waited};
        }
    }
}

}  // namespace fm3
