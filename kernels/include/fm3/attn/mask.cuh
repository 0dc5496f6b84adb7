// Masks a 64 x 128 block of scores from the bands of its key columns.
#pragma once
#include <cstdint>

#include "fm3/attn/layout.cuh"

namespace fm3 {

// Bands lie in shared memory as { a_start, b_end, a_end, b_start }.
__device__ __forceinline__ int2 load_two(uint32_t shared) {
    int2 value;
    asm volatile("ld.shared.v2.s32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(shared) : "memory");
    return value;
}

__device__ __forceinline__ int4 load_four(uint32_t shared) {
    int4 value;
    asm volatile("ld.shared.v4.s32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "r"(shared)
                 : "memory");
    return value;
}

// `bands`: of this thread's first column, 2 (lane % 4). `row`: of its first accumulator.
__device__ __forceinline__ void mask_simple(float (&scores)[64], uint32_t bands, int row) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int column = 0; column < 2; ++column) {
            const int2 band = load_two(bands + (8 * j + column) * 16);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int i = row + 8 * half;
                float& score = scores[4 * j + 2 * half + column];
                score = i >= band.x || i < band.y ? -INFINITY : score;
            }
        }
    }
}

__device__ __forceinline__ void mask_general(float (&scores)[64], uint32_t bands, int row) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int column = 0; column < 2; ++column) {
            const int4 band = load_four(bands + (8 * j + column) * 16);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int i = row + 8 * half;
                float& score = scores[4 * j + 2 * half + column];
                const bool in_a = i >= band.x && i < band.z;
                const bool in_b = i >= band.w && i < band.y;
                score = in_a || in_b ? -INFINITY : score;
            }
        }
    }
}

}  // namespace fm3
