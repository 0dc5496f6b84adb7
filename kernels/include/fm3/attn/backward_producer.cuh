// The producer warp of the backward kernel: K and V of a key tile once, then Q and dO of all query rows that see it.
#pragma once
#include <cstdint>

#include "fm3/attn/backward_layout.cuh"
#include "fm3/attn/producer.cuh"

namespace fm3::backward {

struct KeyTilePlace {
    uint32_t batch, kv_head, key_tile;

    __device__ __forceinline__ uint32_t mask(const BackwardParams& p, uint32_t member) const {
        return batch * p.mask_batch_step + (kv_head * p.group + member) / p.heads_per_mask;
    }
};

// Key tiles of a KV head in this launch.
template <typename Form>
__device__ __forceinline__ uint32_t head_tiles(const BackwardParams& p) {
    return Form::kPart ? p.part_tiles : p.key_tiles;
}

// Sections of KV heads, in each the tiles of smaller rank; then the others of all heads, which are short and end together.
template <typename Form>
__device__ __forceinline__ KeyTilePlace locate(const BackwardParams& p, uint32_t tile) {
    const uint32_t all_heads = p.tiles / head_tiles<Form>(p);
    uint32_t inside = tile, first_head = 0, heads = all_heads, first_rank = 0;
    if (tile < p.section_ranks * all_heads) {
        const uint32_t section_tiles = p.section_heads * p.section_ranks;
        const uint32_t section = tile / section_tiles;
        inside -= section * section_tiles;
        first_head = section * p.section_heads;
        heads = min(p.section_heads, all_heads - first_head);
    } else {
        first_rank = p.section_ranks;
        inside -= first_rank * all_heads;
    }
    const uint32_t rank_inside = inside / heads;
    const uint32_t rank = first_rank + rank_inside;
    const uint32_t head = first_head + inside - rank_inside * heads;
    KeyTilePlace place;
    place.batch = head / p.heads_kv;
    place.kv_head = head - place.batch * p.heads_kv;
    const uint64_t ranked = static_cast<uint64_t>(place.mask(p, 0)) * head_tiles<Form>(p) + rank;
    place.key_tile = reinterpret_cast<const uint32_t*>(p.ranked_t)[ranked];
    return place;
}

// Row tiles that see the key tile through one query head.
struct RowList {
    uint32_t list, count;

    __device__ __forceinline__ static RowList of(
        const BackwardParams& p, const KeyTilePlace& place, uint32_t member) {
        const uint32_t list = place.mask(p, member) * p.key_tiles + place.key_tile;
        return {list, reinterpret_cast<const uint32_t*>(p.counts_t)[list]};
    }

    __device__ __forceinline__ uint32_t entry(const BackwardParams& p, uint32_t i) const {
        return reinterpret_cast<const uint32_t*>(p.entries_t)[static_cast<uint64_t>(list) * p.row_tiles + i];
    }

    // Two for each entry; the last row tile may have only one.
    __device__ __forceinline__ uint32_t steps(const BackwardParams& p) const {
        const bool half = (p.seq_q - 1) % kRows < kStepRows;
        const bool has_last = count != 0 && entry(p, count - 1) >> 2 == p.row_tiles - 1;
        return 2 * count - (half && has_last);
    }
};

// Steps over all query heads of the KV head; a whole warp.
__device__ __forceinline__ uint32_t count_steps(const BackwardParams& p, const KeyTilePlace& place) {
    uint32_t steps = 0;
    for (uint32_t member = threadIdx.x % 32; member < p.group; member += 32) {
        steps += RowList::of(p, place, member).steps(p);
    }
    return __reduce_add_sync(0xFFFFFFFFu, steps);
}

__device__ __forceinline__ void store_two(uint32_t address, uint32_t first, uint32_t second) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(first), "r"(second) : "memory");
}

// From here on dQ is not complete: others end their waits for turns, and the last pass writes NaN.
__device__ __forceinline__ void poison_query_grads(const BackwardParams& p) {
    store_relaxed_device(reinterpret_cast<uint32_t*>(p.poisoned), 1);
}

// What one lane issues. Q has a buffer more than dO: the scores of the next step are under way before this one ends.
template <typename Form>
struct Loader {
    uint32_t shared;
    Barriers barriers;
    RingPosition<kQueryStages> queries;
    RingPosition<kGradientStages> gradients;
    uint32_t keys_parity;
    SegmentReader<> segments;  // parts

    // Parts: waits until the keys of a tile are there, if somebody sees it. False: nothing is loaded any more.
    __device__ __forceinline__ bool await_keys(
        const BackwardParams& p, const KeyTilePlace& place, uint32_t segment, bool seen, uint64_t* verified) {
        segments.poisoned |= stop_words(p).set();
        if (seen) {
            segments.current = 0xFFFFFFFFu;  // pieces are of heads: the segment's last wait says nothing of this one
            segments.enter(p, segment, place.kv_head, verified);
        }
        if (segments.poisoned) poison_query_grads(p);
        return !segments.poisoned;
    }

    // A tile that nobody sees is handed over too, without its rows: its zeroes go out through the same buffers.
    __device__ __forceinline__ void load_keys(
        const BackwardParams& p, const KeyTilePlace& place, uint32_t key_place, bool seen) {
        const KeySegment segment = reinterpret_cast<const KeySegment*>(p.segments)[key_place >> 20];
        const uint32_t kv_head = Form::kSplit ? place.kv_head / p.split : place.kv_head;
        const uint32_t group = kv_head / p.heads_per_group[segment.map];
        const Coordinates5 at = {0, static_cast<int32_t>((key_place & 0xFFFFF) * kKeys),
                                 static_cast<int32_t>(kv_head - group * p.heads_per_group[segment.map]),
                                 static_cast<int32_t>(group), static_cast<int32_t>(segment.slab + place.batch)};
        barrier_wait(barriers.keys_empty(), keys_parity);
        keys_parity ^= 1;
        if (!seen) {
            barrier_arrive(barriers.keys_full());
            return;
        }
        barrier_expect_bytes(barriers.keys_full(), 2 * kTileBytes);
        load_key_tile(shared + offset::kK, p.k[segment.map], barriers.keys_full(), at);
        load_key_tile(shared + offset::kV, p.v[segment.map], barriers.keys_full(), at);
    }

    __device__ __forceinline__ void load_step(
        const BackwardParams& p, const KeyTilePlace& place, uint32_t member, uint32_t block, uint32_t turn = 0) {
        const uint32_t head = place.kv_head * p.group + member;
        const uint32_t stage = queries.stage;
        const uint32_t full = barriers.q_full(stage);
        const uint32_t query_head = place.batch * p.heads_q + head;
        barrier_wait(barriers.q_empty(stage), queries.parity);
        store_two(shared + offset::kStep + stage * 16, query_head, block);
        if constexpr (Form::kOrdered) store_two(shared + offset::kStep + stage * 16 + 8, turn, 0);
        const bool partial = class_of(block) != BlockClass::kFull;
        barrier_expect_bytes(full, kStepBytes + kRowBytes + (partial ? kBandsBytes : 0));
        load_rows(shared + offset::kQ + stage * kStepBytes, p.q, full, place.batch, head, block);
        load_bytes(shared + offset::kLse + stage * kRowBytes, row_values(p, p.lse2, query_head, block), kRowBytes, full);
        if (partial) {
            const uint64_t tile = static_cast<uint64_t>(place.mask(p, member)) * p.key_tiles + place.key_tile;
            load_bytes(shared + offset::kBands + stage * kBandsBytes,
                       reinterpret_cast<const unsigned char*>(p.bands) + tile * kBandsBytes, kBandsBytes, full);
        }
        queries.advance();
        load_gradients(p, place.batch, head, query_head, block);
    }

private:
    __device__ __forceinline__ void load_gradients(
        const BackwardParams& p, uint32_t batch, uint32_t head, uint32_t query_head, uint32_t block) {
        const uint32_t stage = gradients.stage;
        const uint32_t full = barriers.gradient_full(stage);
        barrier_wait(barriers.gradient_empty(stage), gradients.parity);
        barrier_expect_bytes(full, kStepBytes + kRowBytes);
        load_rows(shared + offset::kGradient + stage * kStepBytes, p.dout, full, batch, head, block);
        load_bytes(shared + offset::kDelta + stage * kRowBytes, row_values(p, p.delta, query_head, block), kRowBytes,
                   full);
        gradients.advance();
    }

    static __device__ __forceinline__ const void* row_values(
        const BackwardParams& p, uint64_t table, uint32_t query_head, uint32_t block) {
        const uint64_t row = static_cast<uint64_t>(query_head) * p.row_tiles * kRows + (block >> 2) * kStepRows;
        return reinterpret_cast<const float*>(table) + row;
    }

    static __device__ __forceinline__ void load_rows(
        uint32_t to, const TensorMap& map, uint32_t full, uint32_t batch, uint32_t head, uint32_t block) {
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
            const Coordinates4 at = {panel * kPanelColumns, static_cast<int32_t>((block >> 2) * kStepRows),
                                     static_cast<int32_t>(head), static_cast<int32_t>(batch)};
            load_box(to + panel * kStepPanelBytes, map, full, at, Keep::kLong);
        }
    }
};

// All steps of a key tile.
template <typename Form>
__device__ __forceinline__ void produce_steps(
    const BackwardParams& p, const KeyTilePlace& place, Loader<Form>& loader) {
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t member = 0; member < p.group; ++member) {
        const RowList list = RowList::of(p, place, member);
        uint32_t entry = 0;
        for (uint32_t i = 0; i < list.count; ++i) {
            if (i % 32 == 0) {
                entry = i + lane < list.count ? list.entry(p, i + lane) : 0;
            }
            const uint32_t now = __shfl_sync(0xFFFFFFFFu, entry, i % 32);
            if (lane == 0) {
                const uint32_t block = (now >> 2) * 2;
                loader.load_step(p, place, member, block << 2 | (now & 3));
                if ((block + 1) * kStepRows < p.seq_q) {
                    loader.load_step(p, place, member, (block + 1) << 2 | (now & 3));
                }
            }
            __syncwarp();
        }
    }
}

// Key tiles that add to a row tile before this one: those of its list with smaller positions. A whole warp.
__device__ __forceinline__ uint32_t count_before(
    const BackwardParams& p, const KeyTilePlace& place, uint32_t member, uint32_t row_tile) {
    const uint32_t list = place.mask(p, member) * p.row_tiles + row_tile;
    const uint32_t count = reinterpret_cast<const uint32_t*>(p.counts)[list];
    const uint32_t* entries =
        reinterpret_cast<const uint32_t*>(p.entries) + static_cast<uint64_t>(list) * p.key_tiles;
    // The order of work is that of the first member's mask, for all members.
    const uint32_t* positions = reinterpret_cast<const uint32_t*>(p.positions) +
                                static_cast<uint64_t>(place.mask(p, 0)) * p.key_tiles;
    const uint32_t mine = positions[place.key_tile] - 1;
    uint32_t before = 0;
#pragma unroll 4
    for (uint32_t i = threadIdx.x % 32; i < count; i += 32) {
        // Tiles of later launches have 0, which becomes the largest.
        before += positions[entries[i] >> 2] - 1 < mine;
    }
    return __reduce_add_sync(0xFFFFFFFFu, before);
}

// As `produce_steps`, from the last rows to the first: under causal and sliding masks the tiles that come first in the
// order come first at every row, too, and hardly any waits for its turn (docs/decisions/0007).
template <typename Form>
__device__ __forceinline__ void produce_ordered_steps(
    const BackwardParams& p, const KeyTilePlace& place, Loader<Form>& loader) {
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t member = 0; member < p.group; ++member) {
        const RowList list = RowList::of(p, place, member);
        uint32_t entry = 0;
        for (uint32_t i = 0; i < list.count; ++i) {
            if (i % 32 == 0) {
                entry = i + lane < list.count ? list.entry(p, list.count - 1 - (i + lane)) : 0;
            }
            const uint32_t now = __shfl_sync(0xFFFFFFFFu, entry, i % 32);
            const uint32_t turn = count_before(p, place, member, now >> 2);
            if (lane == 0) {
                const uint32_t block = (now >> 2) * 2;
                if ((block + 1) * kStepRows < p.seq_q) {
                    loader.load_step(p, place, member, (block + 1) << 2 | (now & 3), turn);
                }
                loader.load_step(p, place, member, block << 2 | (now & 3), turn);
            }
            __syncwarp();
        }
    }
}

// The next tile that nobody has. Ordered: all tiles come from the counter, so that a tile with a smaller number is
// always in the hands of a block that runs.
template <typename Form>
__device__ __forceinline__ uint32_t claim_next(const BackwardParams& p) {
    uint32_t claimed = 0;
    if (threadIdx.x == 0) {
        claimed = Form::kOrdered ? claim_in_order(p.claims) : claim_tile(p.claims);
    }
    return __shfl_sync(0xFFFFFFFFu, claimed, 0);
}

// The whole life of the producer warp.
template <typename Form>
__device__ __forceinline__ void produce(const BackwardParams& p, uint32_t shared, uint64_t* verified) {
    const uint32_t lane = threadIdx.x;
    Loader<Form> loader = {shared, Barriers{shared + offset::kBarriers}, {0, 1}, {0, 1}, 1, {}};
    RingPosition<2> tiles = {0, 1};
    uint32_t tile = Form::kOrdered ? claim_next<Form>(p) : blockIdx.x;
    while (true) {
        const bool more = tile < p.tiles;
        KeyTilePlace place = {};
        uint32_t steps = 0, key_place = 0, poisoned = 0;
        if (more) {
            place = locate<Form>(p, tile);
            steps = Form::kPart && p.sum_only ? 0 : count_steps(p, place);
            key_place = reinterpret_cast<const uint32_t*>(p.places)[place.key_tile];
            if constexpr (Form::kPart) {
                if (lane == 0) poisoned = !loader.await_keys(p, place, key_place >> 20, steps != 0, verified);
                poisoned = __shfl_sync(0xFFFFFFFFu, poisoned, 0);
                if (poisoned) steps = 0;
            }
        }
        if (lane == 0) {
            barrier_wait(loader.barriers.tile_empty(tiles.stage), tiles.parity);
            const uint32_t message = shared + offset::kTile + tiles.stage * 16;
            store_two(message, more ? place.batch * p.heads_kv + place.kv_head : kNoMoreTiles, key_place);
            store_two(message + 8, steps, (loader.keys_parity ^ 1) | poisoned << 1);
            barrier_arrive(loader.barriers.tile_full(tiles.stage));
        }
        tiles.advance();
        if (!more) {
            break;
        }
        if (lane == 0) {
            loader.load_keys(p, place, key_place, steps != 0);
        }
        __syncwarp();
        if constexpr (Form::kOrdered) {
            if (steps != 0) produce_ordered_steps(p, place, loader);
        } else if (!Form::kPart || steps != 0) {
            produce_steps(p, place, loader);
        }
        tile = claim_next<Form>(p);
    }
    if (lane == 0) {
        finish_claims(p.claims);
    }
}

}  // namespace fm3::backward
