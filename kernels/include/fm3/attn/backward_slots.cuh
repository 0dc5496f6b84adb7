// dK and dV of a key tile in f32 slots: written there for their owner, or added by the owner from there.
#pragma once
#include <cstdint>

#include "fm3/attn/backward_layout.cuh"
#include "fm3/generated/params.h"

namespace fm3::backward {

// A tile in a slot: [warpgroup][4 accumulators][thread][4], so that neighbours hold neighbouring 16 bytes.
constexpr uint32_t kSlotTileUnits = kKeys * kHeadDim / 4;  // of 16 bytes

// Where the gradients of one key tile are in the slots of its segment.
struct GradTile {
    const GradSegment* segment;  // null: no table
    uint64_t tile;               // in a slot

    __device__ __forceinline__ static GradTile of(const BackwardParams& p, const TileMessage& tile) {
        if (p.grad_segments == 0) {
            return {nullptr, 0};
        }
        const GradSegment* segment = reinterpret_cast<const GradSegment*>(p.grad_segments) + (tile.place >> 20);
        return {segment, static_cast<uint64_t>(tile.slab_head) * segment->tiles + (tile.place & 0xFFFFF)};
    }

    // The gradients' map and slab: those of the keys, unless the launch has a table.
    __device__ __forceinline__ static KeySegment place(
        const BackwardParams& p, const TileMessage& tile, const KeySegment& keys) {
        if (p.grad_segments == 0) {
            return keys;
        }
        const GradSegment& segment = reinterpret_cast<const GradSegment*>(p.grad_segments)[tile.place >> 20];
        return {0, segment.map, segment.slab};
    }

    // What nobody here sees need not be written where its owner does not look.
    __device__ __forceinline__ bool is_written(const TileMessage& message) const {
        return message.steps != 0 || message.poisoned() || segment == nullptr || segment->skip_unseen == 0;
    }

    // In the order of the table, so that the sums have the same bits in every launch.
    __device__ __forceinline__ void add_slots(
        const BackwardParams& p, float (&dk)[64], float (&dv)[64], uint32_t warpgroup, uint32_t thread) const {
        if (segment == nullptr) {
            return;
        }
        const GradSlot* slot = reinterpret_cast<const GradSlot*>(p.grad_slots) + segment->first_slot;
#pragma unroll 1
        for (uint32_t left = segment->slots; left != 0; --left, ++slot) {
            if (slot->written == 0 || reinterpret_cast<const uint8_t*>(slot->written)[tile] != 0) {
                add(dk, slot->dk, warpgroup, thread);
                add(dv, slot->dv, warpgroup, thread);
            }
        }
    }

    __device__ __forceinline__ void store(
        const float (&dk)[64], const float (&dv)[64], float scale, uint32_t warpgroup, uint32_t thread) const {
        store_to(segment->dk, segment->dv, dk, dv, scale, warpgroup, thread);
    }

    __device__ __forceinline__ void store_to(
        uint64_t dk_slot, uint64_t dv_slot, const float (&dk)[64], const float (&dv)[64], float scale,
        uint32_t warpgroup, uint32_t thread) const {
        float4* to_dk = units(dk_slot, warpgroup, thread);
        float4* to_dv = units(dv_slot, warpgroup, thread);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            to_dk[i * 128] = make_float4(dk[4 * i] * scale, dk[4 * i + 1] * scale, dk[4 * i + 2] * scale,
                                         dk[4 * i + 3] * scale);
            to_dv[i * 128] = make_float4(dv[4 * i], dv[4 * i + 1], dv[4 * i + 2], dv[4 * i + 3]);
        }
    }

private:
    __device__ __forceinline__ float4* units(uint64_t slot, uint32_t warpgroup, uint32_t thread) const {
        return reinterpret_cast<float4*>(slot) + tile * kSlotTileUnits + warpgroup * (kSlotTileUnits / kConsumers) +
               thread;
    }

    // Past the L1: a peer wrote it.
    __device__ __forceinline__ void add(float (&sums)[64], uint64_t slot, uint32_t warpgroup, uint32_t thread) const {
        const float4* from = units(slot, warpgroup, thread);
#pragma unroll
        for (int i = 0; i < 16; ++i) {
            const float4 part = __ldcg(from + i * 128);
            sums[4 * i] += part.x;
            sums[4 * i + 1] += part.y;
            sums[4 * i + 2] += part.z;
            sums[4 * i + 3] += part.w;
        }
    }
};

}  // namespace fm3::backward
