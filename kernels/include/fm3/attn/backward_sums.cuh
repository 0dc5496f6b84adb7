// The adding warps of the backward kernel: dQ of each step from shared memory to the sums in global memory. A warp for
// each warpgroup's half, so that neither waits for the other's. Ordered: a half of a block of 64 rows and one query head
// is added to by one key tile after another, in the order of their positions.
#pragma once
#include <cstdint>

#include "fm3/attn/backward_consumer.cuh"
#include "fm3/attn/backward_producer.cuh"
#include "fm3/ptx/signal.cuh"

namespace fm3::backward {

constexpr uint32_t kTurnReport = 0xFFFFFFFFu;  // in a WaitReport instead of a segment

// Whose turn it is at half a block of dQ; one thread.
struct Turn {
    uint32_t* word;

    __device__ __forceinline__ static Turn of(const BackwardParams& p, uint32_t target, uint32_t warpgroup) {
        return {reinterpret_cast<uint32_t*>(p.turns) + kConsumers * static_cast<uint64_t>(target) + warpgroup};
    }

    // Until `turn` key tiles have added. False: they will not.
    __device__ __forceinline__ bool await(const BackwardParams& p, uint32_t target, uint32_t turn) const {
        jitter();
        uint32_t seen = load_acquire_device(word);
        if (seen != turn && !spin(p, target, turn)) {
            return false;
        }
        fence_global_to_async();
        return true;
    }

    // After this thread's additions: they are done, not only read, before the next tile may know.
    __device__ __forceinline__ void end(uint32_t turn) const {
        store_wait();
        fence_global_to_async();
        jitter();
        store_release_device(word, turn + 1);
    }

private:
    __device__ __forceinline__ bool spin(const BackwardParams& p, uint32_t target, uint32_t turn) const {
        const uint64_t start = global_nanoseconds();
        for (uint32_t poll = 1;; ++poll) {
            __nanosleep(32);
            const uint32_t seen = load_acquire_device(word);
            if (seen == turn) {
                return true;
            }
            const uint64_t waited = global_nanoseconds() - start;
            const bool expired = p.turn_deadline_ns != 0 && waited > p.turn_deadline_ns;
            if (expired && p.report != 0) {
                write_report(p.report, kTurnReport, target, turn, {false, true, seen, waited});
            }
            if (expired || (poll % 64 == 0 && is_over(p))) {
                poison_query_grads(p);
                return false;
            }
        }
    }

    static __device__ __forceinline__ bool is_over(const BackwardParams& p) {
        return load_relaxed_system(reinterpret_cast<const uint32_t*>(p.poisoned)) != 0 || stop_words(p).set();
    }
};

// Until a warpgroup has handed its dQ over; a whole warp. Returns where it goes. The fence stands here and not behind the
// stores, where each of 128 threads would wait for them: it may be anywhere between them and the addition.
__device__ __forceinline__ uint32_t await_query_grads(uint32_t shared, uint32_t warpgroup) {
    named_sync(kSumFullBarrier + warpgroup, kSumThreads);
    fence_shared_to_async();
    return load_shared_word(shared + offset::kTarget + 4 * warpgroup);
}

__device__ __forceinline__ void start_addition(
    const BackwardParams& p, uint32_t shared, uint32_t warpgroup, uint32_t target) {
    constexpr uint32_t kHalf = kStepRows * kHeadDim / kConsumers;
    float* sums = reinterpret_cast<float*>(p.dq_sums) + (static_cast<uint64_t>(target) * kConsumers + warpgroup) * kHalf;
    add_floats(sums, shared + offset::kQuerySum + warpgroup * kQuerySumBytes, kQuerySumBytes, Keep::kLong);
    store_commit();
}

// The whole life of a warpgroup's adding warp. Ordered: a turn ends when the buffer is free already.
template <bool kOrdered>
__device__ __forceinline__ void add_query_grads(const BackwardParams& p, uint32_t shared, uint32_t warpgroup) {
    const uint32_t lane = threadIdx.x % 32;
    bool adds = true;  // one lane, as what follows: no wait has ended without its turn
    Turn turn = {};
    uint32_t number = 0;
    while (true) {
        named_arrive(kSumEmptyBarrier + warpgroup, kSumThreads);
        if (kOrdered && lane == 0 && turn.word != nullptr) turn.end(number);
        __syncwarp();
        const uint32_t target = await_query_grads(shared, warpgroup);
        if (target == kNoTarget) {
            break;
        }
        if (lane == 0) {
            if constexpr (kOrdered) {
                number = load_shared_word(shared + offset::kTurn + 4 * warpgroup);
                turn = Turn::of(p, target, warpgroup);
                adds = adds && turn.await(p, target, number);
                if (!adds) turn.word = nullptr;
            }
            if (adds) {
                start_addition(p, shared, warpgroup, target);
                store_wait_read_all_but<0>();
            }
        }
        __syncwarp();
    }
    if (lane == 0) store_wait();
}

}  // namespace fm3::backward
