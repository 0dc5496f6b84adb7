// Which tile a CTA works on next, and where its block list is.
#pragma once
#include <cstdint>

#include "fm3/generated/params.h"

namespace fm3 {

struct TilePlace {
    uint32_t batch, head;
    uint32_t row_tile;

    __device__ __forceinline__ uint32_t query_head(const ForwardParams& p) const {
        return batch * p.heads_q + head;
    }

    // Index of its mask among all masks.
    __device__ __forceinline__ uint32_t mask(const ForwardParams& p) const {
        return batch * p.mask_batch_step + head / p.heads_per_mask;
    }

    // Index of its block list.
    __device__ __forceinline__ uint32_t list(const ForwardParams& p) const {
        return mask(p) * p.row_tiles + row_tile;
    }
};

// Tiles come in sections of heads whose K and V stay in L2 together; inside a section the row tiles with most work
// come first, each for all heads of the section.
__device__ __forceinline__ TilePlace locate(const ForwardParams& p, uint32_t tile) {
    const uint32_t section_tiles = p.section_heads * p.row_tiles;
    const uint32_t section = tile / section_tiles;
    const uint32_t inside = tile - section * section_tiles;
    const uint32_t first_head = section * p.section_heads;
    const uint32_t heads = min(p.section_heads, p.tiles / p.row_tiles - first_head);
    const uint32_t rank = inside / heads;
    const uint32_t query_head = first_head + inside - rank * heads;
    TilePlace place;
    place.batch = query_head / p.heads_q;
    place.head = query_head - place.batch * p.heads_q;
    const uint64_t ranked = static_cast<uint64_t>(place.mask(p)) * p.row_tiles + rank;
    place.row_tile = reinterpret_cast<const uint32_t*>(p.ranked)[ranked];
    return place;
}

// The next tile that nobody has; one thread. Tiles below the grid size belong to the CTAs of that index.
__device__ __forceinline__ uint32_t claim_tile(uint64_t claims) {
    return gridDim.x + atomicAdd(reinterpret_cast<uint32_t*>(claims), 1u);
}

// As `claim_tile`, of all tiles: none belongs to a CTA before it runs.
__device__ __forceinline__ uint32_t claim_in_order(uint64_t claims) {
    return atomicAdd(reinterpret_cast<uint32_t*>(claims), 1u);
}

// The last CTA to come here zeroes the claims for the next launch; one thread, after its last claim.
__device__ __forceinline__ void finish_claims(uint64_t address) {
    uint32_t* claims = reinterpret_cast<uint32_t*>(address);
    __threadfence();
    if (atomicInc(claims + 1, gridDim.x - 1) == gridDim.x - 1) {
        __threadfence();
        claims[0] = 0;
    }
}

}  // namespace fm3
