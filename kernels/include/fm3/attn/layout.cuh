// Shared memory of the forward kernel, and the words that the producer hands to the consumers.
#pragma once
#include <cstdint>

#include "fm3/ptx/barrier.cuh"

namespace fm3 {

constexpr int kRows = 128;       // query rows of a tile: two consumer warpgroups of 64
constexpr int kKeys = 128;       // key columns of a tile
constexpr int kHeadDim = 128;
constexpr int kStages = 2;       // of K and of V
constexpr int kConsumers = 2;    // warpgroups
constexpr int kPanelColumns = 64;  // 128 bytes: the width of the swizzle
constexpr int kPanels = kHeadDim / kPanelColumns;

constexpr uint32_t kTileBytes = 128 * kHeadDim * 2;     // of Q, K, V and O alike
constexpr uint32_t kPanelBytes = 128 * kPanelColumns * 2;
constexpr uint32_t kWarpgroupBytes = 64 * kPanelColumns * 2;  // 64 rows inside a panel
constexpr uint32_t kBandsBytes = kKeys * 16;            // { a_start, b_end, a_end, b_start } per column

// Offsets in dynamic shared memory, which starts at a multiple of 1024 bytes (128-byte swizzle).
namespace offset {
constexpr uint32_t kQ = 0;
constexpr uint32_t kK = kQ + kTileBytes;
constexpr uint32_t kV = kK + kStages * kTileBytes;
constexpr uint32_t kO = kV + kStages * kTileBytes;
constexpr uint32_t kBands = kO + kTileBytes;
constexpr uint32_t kTile = kBands + kStages * kBandsBytes;  // 2 x TileMessage
constexpr uint32_t kEntry = kTile + 2 * 16;                 // one word per K stage
constexpr uint32_t kVerified = kEntry + 16;                 // u64 per segment
constexpr uint32_t kVerifiedSegments = 64;
constexpr uint32_t kBarriers = kVerified + kVerifiedSegments * 8;
constexpr uint32_t kEnd = kBarriers + 16 * 8;
}  // namespace offset
static_assert(offset::kEnd <= 232448, "more shared memory than a block may have");

// Shared-memory addresses of the barriers.
struct Barriers {
    uint32_t base;

    __device__ __forceinline__ uint32_t q_full(uint32_t warpgroup) const { return base + 8 * warpgroup; }
    __device__ __forceinline__ uint32_t q_empty(uint32_t warpgroup) const { return base + 16 + 8 * warpgroup; }
    __device__ __forceinline__ uint32_t k_full(uint32_t stage) const { return base + 32 + 8 * stage; }
    __device__ __forceinline__ uint32_t k_empty(uint32_t stage) const { return base + 48 + 8 * stage; }
    __device__ __forceinline__ uint32_t v_full(uint32_t stage) const { return base + 64 + 8 * stage; }
    __device__ __forceinline__ uint32_t v_empty(uint32_t stage) const { return base + 80 + 8 * stage; }
    __device__ __forceinline__ uint32_t tile_full(uint32_t slot) const { return base + 96 + 8 * slot; }
    __device__ __forceinline__ uint32_t tile_empty(uint32_t slot) const { return base + 112 + 8 * slot; }

    // By one thread. Consumers arrive once per warp.
    __device__ __forceinline__ void init() const {
        constexpr uint32_t kConsumerWarps = 4 * kConsumers;
        for (uint32_t i = 0; i < 2; ++i) {
            barrier_init(q_full(i), 1);
            barrier_init(q_empty(i), 4);
            barrier_init(k_full(i), 1);
            barrier_init(k_empty(i), kConsumerWarps);
            barrier_init(v_full(i), 1);
            barrier_init(v_empty(i), kConsumerWarps);
            barrier_init(tile_full(i), 1);
            barrier_init(tile_empty(i), kConsumerWarps);
        }
        barrier_init_fence();
    }
};

// A tile of work, from the producer to the consumers.
struct TileMessage {
    uint32_t query_head;  // b * heads_q + h, or kNoMoreTiles
    uint32_t row_tile;
    uint32_t entries;     // key tiles to come
    uint32_t poisoned;    // 1: O and LSE of this tile are NaN
};
constexpr uint32_t kNoMoreTiles = 0xFFFFFFFFu;

// An entry of a block list: key tile << 2 | class; the producer adds kPoisoned from the first key tile that it could
// not load.
enum class BlockClass : uint32_t { kFull = 0, kSimple = 1, kGeneral = 2 };
constexpr uint32_t kPoisoned = 0x80000000u;

__device__ __forceinline__ BlockClass class_of(uint32_t entry) {
    return static_cast<BlockClass>(entry & 3);
}

__device__ __forceinline__ uint32_t key_tile_of(uint32_t entry) {
    return (entry & ~kPoisoned) >> 2;
}

}  // namespace fm3
