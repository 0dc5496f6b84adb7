// Attention backward for Hopper: one producer warp, two warps that add dQ, two consumer warpgroups.
// Shah et al., "FlashAttention-3"; Dao, "FlashAttention-2", algorithm 2.
#pragma once
#include <cstdint>

#include "fm3/attn/backward_consumer.cuh"
#include "fm3/attn/backward_layout.cuh"
#include "fm3/attn/backward_producer.cuh"
#include "fm3/attn/backward_sums.cuh"

namespace fm3::backward {

constexpr int kThreads = 128 * (1 + kConsumers);
// 24 + 2 * 240 = 504 = 3 * 168, which is what a thread has at the start.
constexpr int kProducerRegisters = 24;
constexpr int kConsumerRegisters = 240;

template <typename Element, typename Form = Plain>
__device__ __forceinline__ void run(const BackwardParams& p) {
    extern __shared__ __align__(1024) unsigned char bytes[];
    const uint32_t shared = shared_address(bytes);
    const Barriers barriers = {shared + offset::kBarriers};
    if (threadIdx.x == 0) {
        if ((shared & 1023) != 0) __trap();
        barriers.init();
    }
    uint64_t* verified = reinterpret_cast<uint64_t*>(bytes + offset::kVerified);
    if (Form::kPart && threadIdx.x < fm3::offset::kVerifiedSegments) {
        verified[threadIdx.x] = 0;
    }
    __syncthreads();
    const uint32_t group = __shfl_sync(0xFFFFFFFFu, threadIdx.x / 128, 0);
    if (group == 0) {
        lower_registers<kProducerRegisters>();
        if (threadIdx.x < 32) {
            produce<Form>(p, shared, verified);
        } else if (threadIdx.x < 32 * (1 + kConsumers)) {
            add_query_grads<Form::kOrdered>(p, shared, threadIdx.x / 32 - 1);
        }
    } else {
        raise_registers<kConsumerRegisters>();
        Consumer<Element, Form> consumer = {p, shared, barriers, group - 1, threadIdx.x % 128, {0, 0}, {0, 0}};
        consumer.run();
    }
}

}  // namespace fm3::backward
