// Online softmax of 64 x 128 blocks in registers (Dao et al., "FlashAttention-2", algorithm 1), with a maximum that is
// looked for only when it must be.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "fm3/ptx/wgmma.cuh"

namespace fm3 {

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Greatest of the four lanes that share a row.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
    return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xFFFFFFFFu, x, 2);
    return x + __shfl_xor_sync(0xFFFFFFFFu, x, 1);
}

// Statistics of the two rows of a thread. P = exp2((score - reference) * scale); any reference gives the same O and
// LSE, so it is the maximum of the first block and changes only when P grows too large for its type. That saves a
// maximum and a product per element, which on a chip at its power limit is time (docs/decisions/0004).
template <typename Element>
struct SoftmaxRows {
    // Finite, so that a row that has seen only masked columns needs no check: exp2(-inf - finite) = 0. Its first
    // visible score gives P = inf, and thus a new reference.
    static constexpr float kNothingSeen = -1e30f;
    // A lane's sum over a block bounds each P of it. f16 ends at 65504 = 2^16; for bf16, P V summed over 2^31 keys must
    // stay below 2^127 for V up to 2^64.
    static constexpr float kLargestSum = std::is_same_v<Element, __nv_bfloat16> ? 0x1p32f : 0x1p13f;

    float reference[2];  // unscaled score
    float sum[2];        // of this lane's columns
    float factor[2];     // for O, when `next` says so

    // First block of a tile.
    __device__ __forceinline__ void first(const float (&scores)[64], uint32_t (&weights)[32], float scale_log2) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            reference[row] = quad_max(block_max(scores, row));
        }
        exponentials(scores, weights, scale_log2, sum);
    }

    // A later block. True if O must be multiplied by `factor` before P V is added.
    __device__ __forceinline__ bool next(const float (&scores)[64], uint32_t (&weights)[32], float scale_log2) {
        float block_sum[2];
        exponentials(scores, weights, scale_log2, block_sum);
        // Also when a sum is NaN.
        const bool fits = block_sum[0] <= kLargestSum && block_sum[1] <= kLargestSum;
        const bool grown = !__all_sync(0xFFFFFFFFu, fits);
        if (grown) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const float greatest = fmaxf(reference[row], quad_max(block_max(scores, row)));
                factor[row] = exp2_fast((reference[row] - greatest) * scale_log2);
                sum[row] *= factor[row];
                reference[row] = greatest;
            }
            exponentials(scores, weights, scale_log2, block_sum);
        }
        sum[0] += block_sum[0];
        sum[1] += block_sum[1];
        return grown;
    }

private:
    // Accumulators 2 i and 2 i + 1 are neighbours in row i % 2.
    static __device__ __forceinline__ float block_max(const float (&scores)[64], int row) {
        float greatest = kNothingSeen;
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            if (i % 2 == row) greatest = fmaxf(greatest, fmaxf(scores[2 * i], scores[2 * i + 1]));
        }
        return greatest;
    }

    __device__ __forceinline__ void exponentials(
        const float (&scores)[64], uint32_t (&weights)[32], float scale_log2, float (&sums)[2]) const {
        const float shift[2] = {reference[0] * scale_log2, reference[1] * scale_log2};
        sums[0] = sums[1] = 0.0f;
#pragma unroll
        for (int i = 0; i < 32; ++i) {
            const float low = exp2_fast(__fmaf_rn(scores[2 * i], scale_log2, -shift[i % 2]));
            const float high = exp2_fast(__fmaf_rn(scores[2 * i + 1], scale_log2, -shift[i % 2]));
            sums[i % 2] += low;
            sums[i % 2] += high;
            weights[i] = pack<Element>(low, high);
        }
    }
};

}  // namespace fm3
