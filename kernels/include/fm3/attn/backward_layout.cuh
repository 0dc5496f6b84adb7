// Shared memory of the backward kernel, and the words that its producer hands to the consumers.
#pragma once
#include <cstdint>

#include "fm3/attn/layout.cuh"

namespace fm3::backward {

// What a kernel does beyond the plain one. All that is neither plain nor split is a part.
template <bool kPart_, bool kSlots_, bool kOrdered_>
struct Form {
    static constexpr bool kPart = kPart_;        // a launch over some of the key tiles: signals, tables of gradients
    static constexpr bool kSlots = kSlots_;      // dK and dV go to slots in f32
    static constexpr bool kOrdered = kOrdered_;  // dQ is added in the order of the tiles
    // A launch over all keys whose KV heads are split: each has some of the query heads, and sums of its own in f32.
    static constexpr bool kSplit = kSlots_ && !kPart_;
};
using Plain = Form<false, false, false>;
using Split = Form<false, true, false>;
using Part = Form<true, false, false>;
using SlotsPart = Form<true, true, false>;
using OrderedPart = Form<true, false, true>;
using OrderedSlotsPart = Form<true, true, true>;

constexpr int kStepRows = 64;  // query rows of a step; an entry of a block list is two steps
constexpr int kQueryStages = 3;
constexpr int kGradientStages = 2;  // of dO and of dS: that of the step before is the other one

constexpr uint32_t kStepBytes = kStepRows * kHeadDim * 2;              // of Q, dO and dS
constexpr uint32_t kStepPanelBytes = kStepRows * kPanelColumns * 2;
constexpr uint32_t kRowBytes = kStepRows * 4;                          // of LSE and delta
constexpr uint32_t kQuerySumBytes = kStepRows * kHeadDim * 4 / kConsumers;  // f32 dQ of one warpgroup

namespace offset {
constexpr uint32_t kK = 0;
constexpr uint32_t kV = kK + kTileBytes;
constexpr uint32_t kQ = kV + kTileBytes;
constexpr uint32_t kGradient = kQ + kQueryStages * kStepBytes;              // dO
constexpr uint32_t kScoreGradient = kGradient + kGradientStages * kStepBytes;  // dS, [query][key]
constexpr uint32_t kQuerySum = kScoreGradient + kGradientStages * kStepBytes;
constexpr uint32_t kBands = kQuerySum + kConsumers * kQuerySumBytes;
constexpr uint32_t kLse = kBands + kQueryStages * kBandsBytes;
constexpr uint32_t kDelta = kLse + kQueryStages * kRowBytes;
constexpr uint32_t kStep = kDelta + kGradientStages * kRowBytes;  // StepMessage per Q stage
constexpr uint32_t kTile = kStep + kQueryStages * 16;             // 2 x TileMessage
constexpr uint32_t kTarget = kTile + 2 * 16;                      // where the dQ of each warpgroup goes
constexpr uint32_t kTurn = kTarget + 8;                           // ordered: and when
constexpr uint32_t kBarriers = kTarget + 16;
constexpr uint32_t kVerified = kBarriers + 20 * 8;                // parts: u64 per segment
constexpr uint32_t kEnd = kVerified + fm3::offset::kVerifiedSegments * 8;
}  // namespace offset
static_assert(offset::kEnd <= 232448, "more shared memory than a block may have");

struct Barriers {
    uint32_t base;

    __device__ __forceinline__ uint32_t keys_full() const { return base; }
    __device__ __forceinline__ uint32_t keys_empty() const { return base + 8; }
    __device__ __forceinline__ uint32_t q_full(uint32_t stage) const { return base + 16 + 8 * stage; }
    __device__ __forceinline__ uint32_t q_empty(uint32_t stage) const { return base + 40 + 8 * stage; }
    __device__ __forceinline__ uint32_t gradient_full(uint32_t stage) const { return base + 64 + 8 * stage; }
    __device__ __forceinline__ uint32_t gradient_empty(uint32_t stage) const { return base + 80 + 8 * stage; }
    __device__ __forceinline__ uint32_t tile_full(uint32_t slot) const { return base + 96 + 8 * slot; }
    __device__ __forceinline__ uint32_t tile_empty(uint32_t slot) const { return base + 112 + 8 * slot; }

    __device__ __forceinline__ void init() const {
        constexpr uint32_t kConsumerWarps = 4 * kConsumers;
        barrier_init(keys_full(), 1);
        barrier_init(keys_empty(), kConsumers);
        for (uint32_t i = 0; i < kQueryStages; ++i) {
            barrier_init(q_full(i), 1);
            barrier_init(q_empty(i), kConsumerWarps);
        }
        for (uint32_t i = 0; i < 2; ++i) {
            barrier_init(gradient_full(i), 1);
            barrier_init(gradient_empty(i), kConsumerWarps);
            barrier_init(tile_full(i), 1);
            barrier_init(tile_empty(i), kConsumerWarps);
        }
        barrier_init_fence();
    }
};

__device__ __forceinline__ uint32_t load_shared_word(uint32_t address) {
    uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
    return word;
}

// A key tile of one KV head. Two words at a time: { slab_head, place }, { steps, keys_parity }.
struct TileMessage {
    uint32_t slab_head;  // b * heads_kv + kv_head, or kNoMoreTiles
    uint32_t place;      // segment << 20 | tile in it
    uint32_t steps;
    uint32_t keys_parity;  // of keys_full; parts: + 2 when the keys did not come

    __device__ __forceinline__ bool poisoned() const { return keys_parity >= 2; }
};

// A step: 64 query rows of one query head.
struct StepMessage {
    uint32_t query_head;  // b * heads_q + h
    uint32_t block;       // row / 64 << 2 | class
    uint32_t turn;        // ordered: key tiles that add to these rows before
};

}  // namespace fm3::backward
