// The small passes around the backward kernel: what it needs of each row, dQ from its sums, dK and dV from those of parts.
#pragma once
#include <cstdint>

#include "fm3/attn/backward_layout.cuh"
#include "fm3/ptx/wgmma.cuh"

namespace fm3::backward {

constexpr int kPassThreads = 256;

// Element offset of the first of a row's head dim; strides are of batch, row, head.
__device__ __forceinline__ uint64_t row_offset(const uint64_t (&strides)[3], uint32_t row) {
    return blockIdx.z * strides[0] + row * strides[1] + blockIdx.y * strides[2];
}

constexpr uint32_t kPreparedRows = kPassThreads / 16;  // of a block: half a warp each, eight elements per lane

// Of eight products of packed elements.
template <typename Element>
__device__ __forceinline__ float dot_eight(const uint4& a, const uint4& b) {
    const uint32_t left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float2 x = unpack<Element>(left[i]), y = unpack<Element>(right[i]);
        sum += x.x * y.x + x.y * y.y;
    }
    return sum;
}

// Delta = sum of dO O, LSE in units of log2, and zeroes in the sums of dQ. +inf instead of LSE makes P zero: for rows
// that see nothing, and for rows past the end. LSE, O and dO are loaded at once.
template <typename Element>
__device__ __forceinline__ void prepare(const BackwardPrepareParams& p) {
    constexpr float kLog2E = 1.4426950408889634f;
    const uint32_t row = blockIdx.x * kPreparedRows + threadIdx.x / 16;
    const uint32_t lane = threadIdx.x % 16;
    const uint64_t head = static_cast<uint64_t>(blockIdx.z) * p.heads_q + blockIdx.y;
    float lse = -INFINITY, delta = 0.0f;
    if (row < p.seq_q) {
        const uint16_t* o = reinterpret_cast<const uint16_t*>(p.o) + row_offset(p.o_strides, row);
        const uint16_t* dout = reinterpret_cast<const uint16_t*>(p.dout) + row_offset(p.dout_strides, row);
        lse = reinterpret_cast<const float*>(p.lse)[head * p.seq_q + row];
        delta = dot_eight<Element>(reinterpret_cast<const uint4*>(o)[lane], reinterpret_cast<const uint4*>(dout)[lane]);
    }
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) {
        delta += __shfl_xor_sync(0xFFFFFFFFu, delta, distance);
    }
    const uint64_t at = head * p.rows_padded + row;
    if (lane == 0) {
        const bool sees = lse != -INFINITY;
        reinterpret_cast<float*>(p.lse2)[at] = sees ? lse * kLog2E : INFINITY;
        reinterpret_cast<float*>(p.delta)[at] = sees ? delta : 0.0f;
    }
    // The sums of 64 rows lie together; which of them a thread zeroes does not matter.
    float4* sums = reinterpret_cast<float4*>(p.dq_sums) + at * (kHeadDim / 4) + lane;
    sums[0] = sums[16] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// 64 rows of one head: the sums lie in the order of the consumers' registers, [warpgroup][8 columns][thread][4].
// Parts: NaN when some part is not complete.
template <typename Element, bool kPart = false>
__device__ __forceinline__ void finish(const BackwardFinishParams& p) {
    constexpr int kPairs = kHeadDim / 2;
    __shared__ __align__(16) uint32_t rows[kStepRows][kPairs + 4];  // padded against bank conflicts
    const uint64_t block = (static_cast<uint64_t>(blockIdx.z) * p.heads_q + blockIdx.y) * p.blocks + blockIdx.x;
    float scale = p.scale;
    if (kPart && *reinterpret_cast<const uint32_t*>(p.poisoned) != 0) scale = __int_as_float(0x7FC00000);
    const float4* sums = reinterpret_cast<const float4*>(p.dq_sums) + block * (kStepRows * kHeadDim / 4);
    for (uint32_t i = threadIdx.x; i < kStepRows * kHeadDim / 4; i += kPassThreads) {
        const float4 sum = sums[i];
        const uint32_t warpgroup = i / 1024, eight = i / 128 % 8, thread = i % 128;
        const uint32_t row = thread / 32 * 16 + thread % 32 / 4;
        const uint32_t pair = warpgroup * 32 + eight * 4 + thread % 4;
        rows[row][pair] = pack<Element>(sum.x * scale, sum.y * scale);
        rows[row + 8][pair] = pack<Element>(sum.z * scale, sum.w * scale);
    }
    __syncthreads();
    constexpr int kUnits = kHeadDim / 8;  // of 16 bytes
    for (uint32_t i = threadIdx.x; i < kStepRows * kUnits; i += kPassThreads) {
        const uint32_t row = blockIdx.x * kStepRows + i / kUnits;
        if (row < p.seq_q) {
            uint16_t* to = reinterpret_cast<uint16_t*>(p.dq) + row_offset(p.dq_strides, row);
            reinterpret_cast<uint4*>(to)[i % kUnits] = reinterpret_cast<const uint4*>(rows[i / kUnits])[i % kUnits];
        }
    }
}

// Eight numbers to where they go: as they are, or rounded once.
template <typename Out>
__device__ __forceinline__ void store_eight(Out* to, const float* from) {
    const float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
    if constexpr (sizeof(Out) == sizeof(float)) {
        reinterpret_cast<float4*>(to)[0] = low;
        reinterpret_cast<float4*>(to)[1] = high;
    } else {
        *reinterpret_cast<uint4*>(to) = make_uint4(pack<Out>(low.x, low.y), pack<Out>(low.z, low.w),
                                                   pack<Out>(high.x, high.y), pack<Out>(high.z, high.w));
    }
}

// 64 rows of dK and dV of one KV head: what its parts have, added in their order. A tile lies in the order of the
// consumers' registers, [warpgroup][8 columns][thread][4].
template <typename Out>
__device__ __forceinline__ void sum_parts(const BackwardSumParams& p) {
    constexpr uint32_t kHalfUnits = kStepRows * kHeadDim / 4;  // of 16 bytes
    constexpr uint32_t kTileUnits = kKeys * kHeadDim / 4;
    __shared__ __align__(16) float rows[kStepRows][kHeadDim + 4];  // padded against bank conflicts
    const uint64_t slab_head = static_cast<uint64_t>(blockIdx.z) * p.heads_kv + blockIdx.y;
    const uint64_t tile = slab_head * p.split * p.key_tiles + blockIdx.x / 2;
    const uint64_t from = tile * kTileUnits + blockIdx.x % 2 * kHalfUnits;
    const uint64_t next_part = static_cast<uint64_t>(p.key_tiles) * kTileUnits;
#pragma unroll 1
    for (uint32_t values = 0; values < 2; ++values) {
        const float4* sums = reinterpret_cast<const float4*>(values ? p.dv_sums : p.dk_sums) + from;
        for (uint32_t i = threadIdx.x; i < kHalfUnits; i += kPassThreads) {
            float4 sum = sums[i];
            for (uint32_t part = 1; part < p.split; ++part) {
                const float4 more = sums[part * next_part + i];
                sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
            }
            const uint32_t eight = i / 128, thread = i % 128;
            const uint32_t row = thread / 32 * 16 + thread % 32 / 4, column = eight * 8 + thread % 4 * 2;
            rows[row][column] = sum.x;
            rows[row][column + 1] = sum.y;
            rows[row + 8][column] = sum.z;
            rows[row + 8][column + 1] = sum.w;
        }
        __syncthreads();
        constexpr uint32_t kEights = kHeadDim / 8;
        for (uint32_t i = threadIdx.x; i < kStepRows * kEights; i += kPassThreads) {
            const uint32_t row = blockIdx.x * kStepRows + i / kEights;
            if (row < p.seq_k) {
                Out* to = values ? reinterpret_cast<Out*>(p.dv) + row_offset(p.dv_strides, row)
                                 : reinterpret_cast<Out*>(p.dk) + row_offset(p.dk_strides, row);
                store_eight(to + i % kEights * 8, &rows[i / kEights][i % kEights * 8]);
            }
        }
        __syncthreads();
    }
}

constexpr int kOrderThreads = 1024;

// The key tiles of a launch, in the order in which they stand among all. One block per mask head.
__device__ __forceinline__ void order(const BackwardOrderParams& p) {
    __shared__ uint32_t counts[kOrderThreads / 32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint64_t all = static_cast<uint64_t>(blockIdx.x) * p.key_tiles;
    const uint32_t* ranked = reinterpret_cast<const uint32_t*>(p.ranked_t) + all;
    uint32_t* order = reinterpret_cast<uint32_t*>(p.order) + static_cast<uint64_t>(blockIdx.x) * p.part_tiles;
    uint32_t* positions = reinterpret_cast<uint32_t*>(p.positions) + all;
    uint32_t done = 0;
    for (uint32_t first = 0; first < p.key_tiles; first += kOrderThreads) {
        const uint32_t rank = first + threadIdx.x;
        const uint32_t tile = rank < p.key_tiles ? ranked[rank] : p.first_tile + p.part_tiles;
        const bool mine = tile >= p.first_tile && tile - p.first_tile < p.part_tiles;
        const uint32_t of_warp = __ballot_sync(0xFFFFFFFFu, mine);
        if (lane == 0) counts[warp] = __popc(of_warp);
        __syncthreads();
        const uint32_t before = __reduce_add_sync(0xFFFFFFFFu, lane < warp ? counts[lane] : 0);
        const uint32_t total = __reduce_add_sync(0xFFFFFFFFu, counts[lane]);
        if (mine) {
            const uint32_t at = done + before + __popc(of_warp & ((1u << lane) - 1));
            order[at] = tile;
            if (p.positions != 0) positions[tile] = p.base + at + 1;
        }
        done += total;
        __syncthreads();
    }
}

}  // namespace fm3::backward
