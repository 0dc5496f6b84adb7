// A consumer warpgroup of the backward kernel: 64 key rows of a tile against all query rows that see them.
// S^T and dP^T have keys as rows, so that P^T and dS^T are operands in registers for dV and dK. dQ of a step, which needs
// dS of both warpgroups, is computed in the next one: neither waits for the other (docs/decisions/0005).
#pragma once
#include <cstdint>

#include "fm3/attn/backward_layout.cuh"
#include "fm3/attn/backward_slots.cuh"
#include "fm3/attn/consumer.cuh"

namespace fm3::backward {

constexpr uint32_t kKeysReadBarrier = 1;       // both warpgroups are done with K and V
constexpr uint32_t kSumEmptyBarrier = 2;       // + warpgroup: its dQ buffer may be written
constexpr uint32_t kSumFullBarrier = 4;        // + warpgroup: its dQ may be added
constexpr uint32_t kEpilogueBarrier = 6;       // + warpgroup
constexpr uint32_t kScoreGradientBarrier = 8;  // + 2 * stage + warpgroup: its dS is written
constexpr uint32_t kSumThreads = 160;          // a warpgroup and the adding warp
constexpr uint32_t kNoTarget = 0xFFFFFFFFu;
constexpr int kLseAhead = 4;  // of 8 pairs of LSE, loaded before the products keep shared memory busy; 8 spill

template <typename Element, typename Form>
struct Consumer {
    const BackwardParams& p;
    uint32_t shared;
    Barriers barriers;
    uint32_t warpgroup, thread;
    RingPosition<kQueryStages> queries;
    RingPosition<kGradientStages> gradients;

    float scores[32];        // S^T, then dP^T
    float query_grads[32];   // dQ of the step before
    float key_grads[64];     // dK
    float value_grads[64];   // dV
    uint32_t target, turn;   // where that dQ goes; ordered: and when

    __device__ __forceinline__ void issue_scores() {
        pin(scores);
        wgmma_fence();
        const uint64_t k = operand(anew(shared) + offset::kK + warpgroup * kWarpgroupBytes, 0);
        const uint64_t q = operand(anew(shared) + offset::kQ + queries.stage * kStepBytes, 0);
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
            const uint32_t column = step % 4 * 32;
            wgmma_shared<Element>(scores, operand_plus(k, step / 4 * kPanelBytes + column),
                                  operand_plus(q, step / 4 * kStepPanelBytes + column), step != 0);
        }
        wgmma_commit();
    }

    __device__ __forceinline__ void issue_score_grads() {
        pin(scores);
        wgmma_fence();
        const uint64_t v = operand(anew(shared) + offset::kV + warpgroup * kWarpgroupBytes, 0);
        const uint64_t gradient = operand(anew(shared) + offset::kGradient + gradients.stage * kStepBytes, 0);
#pragma unroll
        for (int step = 0; step < kHeadDim / 16; ++step) {
            const uint32_t column = step % 4 * 32;
            wgmma_shared<Element>(scores, operand_plus(v, step / 4 * kPanelBytes + column),
                                  operand_plus(gradient, step / 4 * kStepPanelBytes + column), step != 0);
        }
        wgmma_commit();
    }

    // sum += weights^T rows, with 64 rows of Q or dO.
    __device__ __forceinline__ void issue_sum(float (&sum)[64], uint32_t (&weights)[16], uint32_t rows) {
        pin(sum);
        pin(weights);
        wgmma_fence();
        const uint64_t b = operand(anew(rows), kStepPanelBytes);
#pragma unroll
        for (int step = 0; step < kStepRows / 16; ++step) {
            wgmma_registers<Element>(sum, weights + 4 * step, operand_plus(b, step * 2048), 1);
        }
        wgmma_commit();
    }

    // dQ of 64 rows, columns 64 * warpgroup and up: dS K over all keys of the tile. The fence after the barrier orders the
    // dS of both warpgroups before the product: it may stand anywhere on the way (PTX ISA, "Causality order").
    __device__ __forceinline__ void start_query_grads(uint32_t stage) {
        named_sync(kScoreGradientBarrier + 2 * stage + (1 - warpgroup), 256);
        fence_shared_to_async();
        pin(query_grads);
        wgmma_fence();
        const uint64_t ds = operand(anew(shared) + offset::kScoreGradient + stage * kStepBytes, 0);
        const uint64_t k = operand(anew(shared) + offset::kK + warpgroup * kPanelBytes, kPanelBytes);
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            wgmma_shared_rows<Element>(query_grads,
                                       operand_plus(ds, step / 4 * kStepPanelBytes + step % 4 * 32),
                                       operand_plus(k, step * 2048), step != 0);
        }
        wgmma_commit();
    }

    // `bands`: of this thread's first key. `row`: of its first query row.
    __device__ __forceinline__ void mask_simple(uint32_t bands, int row) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int2 band = load_two(bands + half * 8 * 16);
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                float& score = scores[4 * (j / 2) + 2 * half + j % 2];
                const int at = row + 8 * (j / 2) + j % 2;
                score = at >= band.x || at < band.y ? -INFINITY : score;
            }
        }
    }

    __device__ __forceinline__ void mask_general(uint32_t bands, int row) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int4 band = load_four(bands + half * 8 * 16);
#pragma unroll
            for (int j = 0; j < 16; ++j) {
                float& score = scores[4 * (j / 2) + 2 * half + j % 2];
                const int at = row + 8 * (j / 2) + j % 2;
                const bool in_a = at >= band.x && at < band.z;
                const bool in_b = at >= band.w && at < band.y;
                score = in_a || in_b ? -INFINITY : score;
            }
        }
    }

    __device__ __forceinline__ void mask(BlockClass block_class, uint32_t block) {
        const uint32_t lane = thread % 32;
        const uint32_t key = warpgroup * 64 + thread / 32 * 16 + lane / 4;
        const uint32_t bands = shared + offset::kBands + queries.stage * kBandsBytes + key * 16;
        const int row = static_cast<int>(block * kStepRows + lane % 4 * 2);
        if (block_class == BlockClass::kSimple) {
            mask_simple(bands, row);
        } else {
            mask_general(bands, row);
        }
    }

    __device__ __forceinline__ uint32_t lse_table() const { return shared + offset::kLse + queries.stage * kRowBytes; }

    // Two neighbouring rows' values per 8 columns of an accumulator.
    __device__ __forceinline__ float2 row_pair(uint32_t table, int j) const {
        float2 pair;
        asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                     : "=f"(pair.x), "=f"(pair.y)
                     : "r"(table + (8 * j + thread % 4 * 2) * 4)
                     : "memory");
        return pair;
    }

    // `lse`: its first kLseAhead pairs are there.
    __device__ __forceinline__ void exponentials(float2 (&lse)[8]) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            if (j + kLseAhead < 8) lse[j + kLseAhead] = row_pair(lse_table(), j + kLseAhead);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float* s = scores + 4 * j + 2 * half;
                s[0] = exp2_fast(__fmaf_rn(s[0], p.scale_log2, -lse[j].x));
                s[1] = exp2_fast(__fmaf_rn(s[1], p.scale_log2, -lse[j].y));
            }
        }
    }

    // dS^T = P^T (dP^T - delta), packed for dK and written as dS[query][key] for dQ. P comes from its packed form: in
    // registers there is no room for both.
    __device__ __forceinline__ void score_gradients(
        const uint32_t (&weights)[16], const float2 (&delta)[8], uint32_t (&packed)[16]) const {
        const uint32_t lane = thread % 32;
        const uint32_t row = lane % 8 + 8 * (lane / 16);
        const uint32_t unit = (thread / 32 * 2 + (lane / 8 & 1)) ^ (row & 7);  // of 8 keys
        const uint32_t buffer = shared + offset::kScoreGradient + gradients.stage * kStepBytes +
                                warpgroup * kStepPanelBytes + row * 128 + unit * 16;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
            for (int i = 4 * j; i < 4 * j + 4; ++i) {
                const float2 weight = unpack<Element>(weights[i]);
                packed[i] = pack<Element>(weight.x * (scores[2 * i] - delta[i / 2].x),
                                          weight.y * (scores[2 * i + 1] - delta[i / 2].y));
            }
            store_matrices_transposed(buffer + 16 * j * 128, packed[4 * j], packed[4 * j + 1], packed[4 * j + 2],
                                      packed[4 * j + 3]);
        }
        named_arrive(kScoreGradientBarrier + 2 * gradients.stage + warpgroup, 256);
    }

    // Hands dQ to the adding warp, in register order. That warp orders it before what the async proxy reads.
    __device__ __forceinline__ void hand_over_query_grads() {
        pin(query_grads);
        named_sync(kSumEmptyBarrier + warpgroup, kSumThreads);
        const uint32_t buffer = shared + offset::kQuerySum + warpgroup * kQuerySumBytes;
        if (thread == 0) {
            store_word(shared + offset::kTarget + 4 * warpgroup, target);
            if constexpr (Form::kOrdered) store_word(shared + offset::kTurn + 4 * warpgroup, turn);
        }
        if (target != kNoTarget) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(buffer + (i * 128 + thread) * 16),
                             "f"(query_grads[4 * i]), "f"(query_grads[4 * i + 1]), "f"(query_grads[4 * i + 2]),
                             "f"(query_grads[4 * i + 3])
                             : "memory");
            }
        }
        named_arrive(kSumFullBarrier + warpgroup, kSumThreads);
    }

    __device__ __forceinline__ void start_scores() {
        barrier_wait(barriers.q_full(queries.stage), queries.parity);
        issue_scores();
    }

    // One step, whose S is there, and dQ of the step before, if there is one. The exponentials run beside that dQ, its
    // hand-over beside dP, dS beside dV; the other warpgroup is elsewhere in its step.
    template <bool kFirst>
    __device__ __forceinline__ void step(bool more) {
        const uint2 message = load_message();
        const BlockClass block_class = class_of(message.y);
        float2 lse[8], delta[8];
#pragma unroll
        for (int j = 0; j < kLseAhead; ++j) lse[j] = row_pair(lse_table(), j);
        if constexpr (!kFirst) start_query_grads(gradients.stage ^ 1);
        if (block_class != BlockClass::kFull) mask(block_class, message.y >> 2);
        exponentials(lse);
        uint32_t weights[16], packed_grads[16];
#pragma unroll
        for (int i = 0; i < 16; ++i) weights[i] = pack<Element>(scores[2 * i], scores[2 * i + 1]);
        barrier_wait(barriers.gradient_full(gradients.stage), gradients.parity);
        issue_score_grads();
#pragma unroll
        for (int j = 0; j < 8; ++j) delta[j] = row_pair(shared + offset::kDelta + gradients.stage * kRowBytes, j);
        issue_sum(value_grads, weights, shared + offset::kGradient + gradients.stage * kStepBytes);
        if constexpr (!kFirst) {
            wgmma_wait<2>();  // dQ
            hand_over_query_grads();
        }
        target = message.x * p.row_tiles * 2 + (message.y >> 2);
        if constexpr (Form::kOrdered) turn = load_shared_word(shared + offset::kStep + queries.stage * 16 + 8);
        wgmma_wait<1>();  // dP
        pin(scores);
        score_gradients(weights, delta, packed_grads);
        wgmma_wait<0>();  // dV
        pin(value_grads);
        pin(weights);
        release(barriers.gradient_empty(gradients.stage));
        issue_sum(key_grads, packed_grads, shared + offset::kQ + queries.stage * kStepBytes);
        const uint32_t stage = queries.stage;
        queries.advance();
        gradients.advance();
        if (more) start_scores();
        wgmma_wait<0>();
        pin(key_grads);
        pin(packed_grads);
        pin(scores);
        release(barriers.q_empty(stage));
    }

    // All steps of a tile; there is one.
    __device__ __forceinline__ void walk(uint32_t steps) {
        start_scores();
        wgmma_wait<0>();
        pin(scores);
        step<true>(steps != 1);
#pragma unroll 1
        for (uint32_t left = steps - 1; left != 0; --left) {
            step<false>(left != 1);
        }
        start_query_grads(gradients.stage ^ 1);
        wgmma_wait<0>();
        hand_over_query_grads();
    }

    // Parts: adds what others have sent for this tile. False: the tile is not written.
    __device__ __forceinline__ bool settle(const TileMessage& tile) {
#pragma unroll
        for (int i = 0; i < 64; ++i) key_grads[i] = __fmul_rn(key_grads[i], p.scale);
        const GradTile grad = GradTile::of(p, tile);
        grad.add_slots(p, key_grads, value_grads, warpgroup, thread);
        return grad.is_written(tile);
    }

    // dK and dV leave from the registers: a slot has their order. K and V are not needed any more.
    __device__ __forceinline__ void store_slots(uint32_t slot) {
        named_sync(kEpilogueBarrier + warpgroup, 128);
        if (thread == 0) barrier_arrive(barriers.keys_empty());
        const TileMessage tile = load_tile(slot);
        if constexpr (Form::kSplit) {
            // There is one segment, whose tiles are the places.
            const GradTile sums = {nullptr, static_cast<uint64_t>(tile.slab_head) * p.key_tiles + tile.place};
            sums.store_to(p.dk_sums, p.dv_sums, key_grads, value_grads, p.scale, warpgroup, thread);
            return;
        }
        const GradTile grad = GradTile::of(p, tile);
        if (grad.is_written(tile)) grad.store(key_grads, value_grads, p.scale, warpgroup, thread);
    }

    // dK and dV go out through the buffers of K and V, which nobody reads any more.
    __device__ __forceinline__ void store(uint32_t slot) {
        if constexpr (Form::kSlots) {
            store_slots(slot);
            return;
        }
        bool written = true;
        if constexpr (Form::kPart) written = settle(load_tile(slot));
        const float key_scale = Form::kPart ? 1.0f : p.scale;
        named_sync(kKeysReadBarrier, 256);
        const uint32_t lane = thread % 32;
        const uint32_t row = thread / 32 * 16 + lane % 16;
        const uint32_t rows = warpgroup * kWarpgroupBytes + row * 128;
#pragma unroll
        for (int j = 0; j < kHeadDim / 16; ++j) {
            const uint32_t at = rows + 2 * j / 8 * kPanelBytes + ((2 * j % 8 + lane / 16) ^ (row & 7)) * 16;
            store_block(shared + offset::kK + at, key_grads, j, key_scale);
            store_block(shared + offset::kV + at, value_grads, j, 1.0f);
        }
        fence_shared_to_async();
        named_sync(kEpilogueBarrier + warpgroup, 128);
        if (thread != 0) {
            return;
        }
        const TileMessage tile = load_tile(slot);
        KeySegment segment = reinterpret_cast<const KeySegment*>(p.segments)[tile.place >> 20];
        if constexpr (Form::kPart) {
            if (!written) {
                barrier_arrive(barriers.keys_empty());
                return;
            }
            segment = GradTile::place(p, tile, segment);
        }
        const uint32_t batch = tile.slab_head / p.heads_kv, kv_head = tile.slab_head - batch * p.heads_kv;
        const uint32_t(&heads_per_group)[4] = Form::kPart ? p.grad_heads_per_group : p.heads_per_group;
        const uint32_t group = kv_head / heads_per_group[segment.map];
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
            const Coordinates5 at = {panel * kPanelColumns,
                                     static_cast<int32_t>((tile.place & 0xFFFFF) * kKeys + warpgroup * 64),
                                     static_cast<int32_t>(kv_head - group * heads_per_group[segment.map]),
                                     static_cast<int32_t>(group), static_cast<int32_t>(segment.slab + batch)};
            const uint32_t from = shared + warpgroup * kWarpgroupBytes + panel * kPanelBytes;
            store_box(p.dk[segment.map], from + offset::kK, at);
            store_box(p.dv[segment.map], from + offset::kV, at);
        }
        store_commit();
        store_wait_read();
        barrier_arrive(barriers.keys_empty());
    }

    // The whole life of the warpgroup.
    __device__ __forceinline__ void run() {
        RingPosition<2> tiles = {0, 0};
        while (true) {
            barrier_wait(barriers.tile_full(tiles.stage), tiles.parity);
            const TileMessage tile = load_tile(tiles.stage);
            if (tile.slab_head == kNoMoreTiles) {
                break;
            }
#pragma unroll
            for (int i = 0; i < 64; ++i) key_grads[i] = value_grads[i] = first_sum(tile);
            barrier_wait(barriers.keys_full(), Form::kPart ? tile.keys_parity & 1 : tile.keys_parity);
            if (tile.steps != 0) walk(tile.steps);
            store(tiles.stage);
            release(barriers.tile_empty(tiles.stage));
            tiles.advance();
        }
        target = kNoTarget;
        hand_over_query_grads();
        if (thread == 0) store_wait();
    }

private:
    // Gradients of a tile whose keys did not come are NaN.
    static __device__ __forceinline__ float first_sum(const TileMessage& tile) {
        if constexpr (Form::kPart) return tile.poisoned() ? __int_as_float(0x7FC00000) : 0.0f;
        return 0.0f;
    }

    static __device__ __forceinline__ void store_word(uint32_t address, uint32_t word) {
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
    }

    // The slot is given back after `store`, which needs it again.
    __device__ __forceinline__ TileMessage load_tile(uint32_t slot) const {
        const int4 words = load_four(shared + offset::kTile + 16 * slot);
        return {static_cast<uint32_t>(words.x), static_cast<uint32_t>(words.y), static_cast<uint32_t>(words.z),
                static_cast<uint32_t>(words.w)};
    }

    __device__ __forceinline__ uint2 load_message() const {
        const int2 words = load_two(shared + offset::kStep + queries.stage * 16);
        return {static_cast<uint32_t>(words.x), static_cast<uint32_t>(words.y)};
    }

    static __device__ __forceinline__ void store_block(uint32_t at, const float (&sums)[64], int j, float scale) {
        uint32_t packed[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) packed[i] = pack<Element>(sums[8 * j + 2 * i] * scale, sums[8 * j + 2 * i + 1] * scale);
        store_matrices(at, packed[0], packed[1], packed[2], packed[3]);
    }
};

}  // namespace fm3::backward
