// Attention forward for Hopper: one producer warp and two consumer warpgroups per SM, which take tiles until none is
// left. Shah et al., "FlashAttention-3", section 3; Wang et al., "FlashMask"; docs/decisions has the choices.
#pragma once
#include <cstdint>

#include "fm3/attn/consumer.cuh"
#include "fm3/attn/layout.cuh"
#include "fm3/attn/producer.cuh"

namespace fm3 {

constexpr int kForwardThreads = 128 * (1 + kConsumers);
// 40 + 2 * 232 = 504 = 3 * 168, which is what a thread has at the start.
constexpr int kProducerRegisters = 56;
constexpr int kConsumerRegisters = 224;

// Timed: the launch and its waits for signals go to the table of times.
template <typename Element, bool kTimed = false>
__device__ __forceinline__ void forward(const ForwardParams& p) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    const uint32_t shared = shared_address(shared_bytes);
    const Barriers barriers = {shared + offset::kBarriers};
    if (threadIdx.x == 0) {
        // The swizzle takes its pattern from the address.
        if ((shared & 1023) != 0) __trap();
        barriers.init();
    }
    if (threadIdx.x < 2 * offset::kVerifiedSegments) {
        reinterpret_cast<uint32_t*>(shared_bytes + offset::kVerified)[threadIdx.x] = 0;
    }
    __syncthreads();
    // Through a shuffle, so that the compiler knows that it is the same for all lanes.
    const uint32_t group = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 128, 0);
    if (group == 0) {
        lower_registers<kProducerRegisters>();
        if (threadIdx.x < 32) {
            produce<kTimed>(p, shared_bytes);
        }
    } else {
        raise_registers<kConsumerRegisters>();
        const uint32_t warpgroup = group - 1;
        Consumer<Element> consumer = {
            p, shared, barriers, warpgroup, threadIdx.x % 128, {0, 0},
            operand(shared + offset::kQ + warpgroup * kWarpgroupBytes, 0), operand(shared + offset::kK, 0),
            operand(shared + offset::kV, kPanelBytes)};
        consumer.run();
    }
}

}  // namespace fm3
