// A consumer warpgroup: 64 query rows of a tile against all key tiles of its list.
#pragma once
#include <cstdint>

#include "fm3/attn/layout.cuh"
#include "fm3/attn/mask.cuh"
#include "fm3/attn/softmax.cuh"
#include "fm3/ptx/tma.cuh"
#include "fm3/ptx/wgmma.cuh"

namespace fm3 {

// Named barriers; 0 is __syncthreads().
constexpr uint32_t kEpilogueBarrier = 1;  // + warpgroup

// One arrival per warp, after all of its lanes came here.
__device__ __forceinline__ void release(uint32_t barrier) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
        barrier_arrive(barrier);
    }
}

// Warpgroups do not take turns on the tensor cores: with a softmax this short, turns cost more than they bring
// (docs/decisions/0004).
template <typename Element>
struct Consumer {
    const ForwardParams& p;
    uint32_t shared;
    Barriers barriers;
    uint32_t warpgroup, thread;  // thread: inside the warpgroup
    RingPosition<kStages> ring;
    uint64_t q_operand, k_operand, v_operand;  // of stage 0

    float scores[64];
    float output[64];
    SoftmaxRows<Element> softmax;
    uint32_t poisoned;

    __device__ __forceinline__ void issue_scores() {
        pin(scores);
        wgmma_fence();
        const uint64_t k = operand_plus(k_operand, ring.stage * kTileBytes);
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
            const uint32_t bytes = step / 4 * kPanelBytes + step % 4 * 32;
            wgmma_shared<Element>(scores, operand_plus(q_operand, bytes), operand_plus(k, bytes), step != 0);
        }
        wgmma_commit();
    }

    // `fresh`: O starts from zero.
    __device__ __forceinline__ void issue_output(uint32_t stage, bool fresh, uint32_t (&weights)[32]) {
        pin(output);
        pin(weights);
        wgmma_fence();
        const uint64_t v = operand_plus(v_operand, stage * kTileBytes);
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            // 16 rows of a panel are 2048 bytes.
            wgmma_registers<Element>(output, weights + 4 * step, operand_plus(v, step * 2048), !(fresh && step == 0));
        }
        wgmma_commit();
    }

    // Scores are there: masks them if the entry says so, and gives K and bands back.
    __device__ __forceinline__ void mask_and_release(uint32_t row_tile) {
        const uint32_t entry = load_entry();
        poisoned |= entry & kPoisoned;
        if (class_of(entry) != BlockClass::kFull) {
            const uint32_t lane = thread % 32;
            const uint32_t bands = shared + offset::kBands + ring.stage * kBandsBytes + lane % 4 * 32;
            const int row = static_cast<int>(row_tile * kRows + warpgroup * 64 + thread / 32 * 16 + lane / 4);
            if (class_of(entry) == BlockClass::kSimple) {
                mask_simple(scores, bands, row);
            } else {
                mask_general(scores, bands, row);
            }
        }
        release(barriers.k_empty(ring.stage));
    }

    __device__ __forceinline__ uint32_t load_entry() const {
        uint32_t entry;
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(entry) : "r"(shared + offset::kEntry + 4 * ring.stage) : "memory");
        return entry;
    }

    __device__ __forceinline__ void first_block(uint32_t row_tile, uint32_t (&weights)[32]) {
        barrier_wait(barriers.k_full(ring.stage), ring.parity);
        issue_scores();
        wgmma_wait<0>();
        pin(scores);
        mask_and_release(row_tile);
        softmax.first(scores, weights, p.scale_log2);
    }

    // Scores of the next block and O of the block before run together; softmax runs beside the latter, from one set
    // of registers for P into the other.
    __device__ __forceinline__ void next_block(
        uint32_t row_tile, bool fresh, uint32_t (&weights_before)[32], uint32_t (&weights)[32]) {
        const RingPosition<kStages> before = ring;
        ring.advance();
        barrier_wait(barriers.k_full(ring.stage), ring.parity);
        issue_scores();
        barrier_wait(barriers.v_full(before.stage), before.parity);
        issue_output(before.stage, fresh, weights_before);
        wgmma_wait<1>();
        pin(scores);
        mask_and_release(row_tile);
        const bool rescale = softmax.next(scores, weights, p.scale_log2);
        wgmma_wait<0>();
        pin(output);
        pin(weights_before);
        release(barriers.v_empty(before.stage));
        if (rescale) {
#pragma unroll
            for (int i = 0; i < 64; ++i) {
                output[i] *= softmax.factor[(i >> 1) & 1];
            }
        }
    }

    __device__ __forceinline__ void last_output(bool fresh, uint32_t (&weights)[32]) {
        release(barriers.q_empty(warpgroup));
        barrier_wait(barriers.v_full(ring.stage), ring.parity);
        issue_output(ring.stage, fresh, weights);
        wgmma_wait<0>();
        pin(output);
        release(barriers.v_empty(ring.stage));
        ring.advance();
    }

    // All blocks of a tile; Q is given back as soon as the last scores are there.
    __device__ __forceinline__ void attend(const TileMessage& tile) {
        uint32_t even[32], odd[32];
        first_block(tile.row_tile, even);
        const uint32_t rest = tile.entries - 1;
        uint32_t left = rest;
        if (left % 2 == 1) {
#pragma unroll
            for (int i = 0; i < 32; ++i) odd[i] = even[i];
        }
#pragma unroll 1
        while (left != 0) {
            if (left % 2 == 0) {
                next_block(tile.row_tile, left == rest, even, odd);
                --left;
            }
            next_block(tile.row_tile, left == rest, odd, even);
            --left;
        }
        last_output(rest == 0, even);
    }

    // O /= sum, LSE = max * scale + ln(sum). A row that saw nothing gives 0 and -inf.
    __device__ __forceinline__ void finish_rows(const TileMessage& tile) {
        constexpr float kLn2 = 0.6931471805599453f;
        const float nan = __int_as_float(0x7FC00000);
        const uint32_t lane = thread % 32;
        float* lse = reinterpret_cast<float*>(p.lse) + static_cast<uint64_t>(tile.query_head) * p.seq_q;
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            const float sum = quad_sum(softmax.sum[row]);
            float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
            float value = sum > 0.0f ? softmax.reference[row] * p.scale_log2 * kLn2 + logf(sum) : -INFINITY;
            if (sum != sum) inverse = value = nan;  // NaN in Q or K stays NaN
            if (poisoned) inverse = value = nan;
            const uint32_t i = tile.row_tile * kRows + warpgroup * 64 + thread / 32 * 16 + lane / 4 + 8 * row;
            if (lane % 4 == 0 && i < p.seq_q) lse[i] = value;
#pragma unroll
            for (int k = 0; k < 64; ++k) {
                if (((k >> 1) & 1) == row) output[k] *= inverse;
            }
        }
    }

    // O goes through a buffer of its own, so that the next tile's loads need not wait for it.
    __device__ __forceinline__ void store_rows(const TileMessage& tile) {
        const uint32_t lane = thread % 32;
        const uint32_t buffer = shared + offset::kO + warpgroup * kWarpgroupBytes;
        if (thread == 0) store_wait_read();
        named_sync(kEpilogueBarrier + warpgroup, 128);
        const uint32_t row = thread / 32 * 16 + lane % 16;
#pragma unroll
        for (int j = 0; j < kHeadDim / 16; ++j) {
            // Column 16 j + 8 (lane / 16); the swizzle permutes the eight 16-byte units of a row.
            const uint32_t unit = (2 * j % 8 + lane / 16) ^ (row & 7);
            store_matrices(buffer + 2 * j / 8 * kPanelBytes + row * 128 + unit * 16,
                           pack<Element>(output[8 * j], output[8 * j + 1]),
                           pack<Element>(output[8 * j + 2], output[8 * j + 3]),
                           pack<Element>(output[8 * j + 4], output[8 * j + 5]),
                           pack<Element>(output[8 * j + 6], output[8 * j + 7]));
        }
        fence_shared_to_async();
        named_sync(kEpilogueBarrier + warpgroup, 128);
        if (thread == 0) {
            const uint32_t batch = tile.query_head / p.heads_q;
#pragma unroll
            for (int panel = 0; panel < kPanels; ++panel) {
                const Coordinates4 at = {panel * kPanelColumns,
                                         static_cast<int32_t>(tile.row_tile * kRows + warpgroup * 64),
                                         static_cast<int32_t>(tile.query_head - batch * p.heads_q),
                                         static_cast<int32_t>(batch)};
                store_box(p.o, buffer + panel * kPanelBytes, at);
            }
            store_commit();
        }
    }

    __device__ __forceinline__ void nothing_to_see() {
#pragma unroll
        for (int i = 0; i < 64; ++i) output[i] = 0.0f;
        softmax.reference[0] = softmax.reference[1] = SoftmaxRows<Element>::kNothingSeen;
        softmax.sum[0] = softmax.sum[1] = 0.0f;
    }

    // The whole life of the warpgroup.
    __device__ __forceinline__ void run() {
        RingPosition<2> tiles = {0, 0};
        RingPosition<1> queries = {0, 0};
        while (true) {
            barrier_wait(barriers.tile_full(tiles.stage), tiles.parity);
            TileMessage tile;
            const int4 words = load_four_words(shared + offset::kTile + 16 * tiles.stage);
            tile = {static_cast<uint32_t>(words.x), static_cast<uint32_t>(words.y), static_cast<uint32_t>(words.z),
                    static_cast<uint32_t>(words.w)};
            release(barriers.tile_empty(tiles.stage));
            tiles.advance();
            if (tile.query_head == kNoMoreTiles) {
                break;
            }
            poisoned = tile.poisoned;
            if (tile.entries == 0) {
                nothing_to_see();
            } else {
                barrier_wait(barriers.q_full(warpgroup), queries.parity);
                queries.advance();
                attend(tile);
            }
            finish_rows(tile);
            store_rows(tile);
        }
        if (thread == 0) store_wait();
    }

private:
    static __device__ __forceinline__ int4 load_four_words(uint32_t address) { return load_four(address); }
};

}  // namespace fm3
