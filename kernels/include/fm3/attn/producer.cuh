// The producer warp: walks the block lists and keeps Q, K, V and mask bands coming.
#pragma once
#include <cstdint>

#include "fm3/attn/layout.cuh"
#include "fm3/attn/schedule.cuh"
#include "fm3/ptx/signal.cuh"
#include "fm3/ptx/tma.cuh"

namespace fm3 {

// The block list of one tile, 32 entries at a time, one per lane; the next 32 are on their way meanwhile.
struct ListReader {
    uint32_t count;
    uint32_t entry, place;              // of this lane, in the current 32
    uint32_t entry_ahead, place_ahead;  // in the next 32

    __device__ __forceinline__ void open(const ForwardParams& p, uint32_t list) {
        count = reinterpret_cast<const uint32_t*>(p.counts)[list];
        // The pitch of a list is key_tiles, so this read is inside it whatever the count is.
        entry = read_entry(p, list, min(threadIdx.x % 32, p.key_tiles - 1));
    }

    __device__ __forceinline__ void find_places(const ForwardParams& p) {
        place = threadIdx.x % 32 < count ? place_of(p, entry) : 0;
    }

    // Before entry `i`; reads are far apart so that none is waited for.
    __device__ __forceinline__ void prefetch(const ForwardParams& p, uint32_t list, uint32_t i) {
        const uint32_t phase = i % 32;
        if (phase == 0 && i != 0) {
            entry = entry_ahead;
            place = place_ahead;
        }
        if (phase == 4 || phase == 16) {
            const uint32_t ahead = i - phase + 32 + threadIdx.x % 32;
            if (phase == 4) {
                entry_ahead = ahead < count ? read_entry(p, list, ahead) : 0;
            } else {
                place_ahead = ahead < count ? place_of(p, entry_ahead) : 0;
            }
        }
    }

private:
    static __device__ __forceinline__ uint32_t read_entry(const ForwardParams& p, uint32_t list, uint32_t i) {
        return reinterpret_cast<const uint32_t*>(p.entries)[static_cast<uint64_t>(list) * p.key_tiles + i];
    }

    static __device__ __forceinline__ uint32_t place_of(const ForwardParams& p, uint32_t entry) {
        return reinterpret_cast<const uint32_t*>(p.places)[key_tile_of(entry)];
    }
};

// The tile after the current one, found in four steps so that no step's memory latency holds up the copies.
struct NextTile {
    uint32_t step;
    uint32_t index;
    TilePlace place;
    ListReader list;

    __device__ __forceinline__ void advance(const ForwardParams& p) {
        switch (step++) {
            case 0: {
                const uint32_t claimed = threadIdx.x == 0 ? claim_tile(p.claims) : 0;
                index = __shfl_sync(0xFFFFFFFFu, claimed, 0);
                break;
            }
            case 1:
                if (index < p.tiles) place = locate(p, index);
                break;
            case 2:
                if (index < p.tiles) list.open(p, place.list(p));
                break;
            case 3:
                if (index < p.tiles) list.find_places(p);
                break;
            default:
                break;
        }
    }
};
constexpr uint32_t kNextTileSteps = 4;

// Looked at before each tile and while waiting. An expired wait stops later calls too, until its report is taken; calls
// without a deadline do not look for one.
template <typename Params>
__device__ __forceinline__ StopWords stop_words(const Params& p) {
    const WaitReport* report = reinterpret_cast<const WaitReport*>(p.deadline_ns != 0 ? p.report : 0);
    return {reinterpret_cast<const uint32_t*>(p.abort), report != nullptr ? &report->state : nullptr};
}

// The first to come here fills the report; states: 0 free, 1 being written, 2 written.
__device__ __forceinline__ void write_report(
    uint64_t address, uint32_t segment, uint32_t kv_head, uint64_t wanted, const SpinOutcome& outcome) {
    WaitReport* report = reinterpret_cast<WaitReport*>(address);
    if (atomicCAS(&report->state, 0u, 1u) != 0u) {
        return;
    }
    report->segment = segment;
    report->kv_head = kv_head;
    report->cta = blockIdx.x;
    report->wanted = wanted;
    report->seen = outcome.seen;
    report->waited_ns = outcome.waited_ns;
    __threadfence_system();
    atomicExch(&report->state, 2u);
}

// The earliest begin and the latest end of all blocks.
__device__ __forceinline__ void record_begin(uint64_t record, uint64_t begin) {
    auto* word = &reinterpret_cast<WaitTimes*>(record)->begin_inverted;
    atomicMax(reinterpret_cast<unsigned long long*>(word), static_cast<unsigned long long>(~begin));
}

__device__ __forceinline__ void record_end(uint64_t record, uint64_t end) {
    auto* times = reinterpret_cast<WaitTimes*>(record);
    atomicMax(reinterpret_cast<unsigned long long*>(&times->end), static_cast<unsigned long long>(end));
    atomicAdd(reinterpret_cast<unsigned long long*>(&times->blocks), 1ull);
}

// After a wait that was no mere look. `wanted` - signal_base is the piece + 1; record 0 is the launch's.
__device__ __forceinline__ void record_wait(
    const ForwardParams& p, uint32_t segment, uint64_t wanted, uint64_t waited_ns) {
    if (waited_ns == 0) {
        return;
    }
    const uint32_t index = segment * p.pieces + static_cast<uint32_t>(wanted - p.signal_base);
    const uint64_t record = p.times + index * static_cast<uint64_t>(sizeof(WaitTimes));
    const uint64_t now = global_nanoseconds();
    record_begin(record, now - waited_ns);
    record_end(record, now);
    auto* times = reinterpret_cast<WaitTimes*>(record);
    atomicAdd(reinterpret_cast<unsigned long long*>(&times->sum_ns), static_cast<unsigned long long>(waited_ns));
    atomicMax(reinterpret_cast<unsigned long long*>(&times->longest_ns), static_cast<unsigned long long>(waited_ns));
}

// What the copying lane knows of the segment that it reads from. Timed: its waits go to the table of times.
template <bool kTimed = false>
struct SegmentReader {
    uint32_t current;  // index, or none
    KeySegment segment;
    bool poisoned;     // a wait expired or the call was aborted: nothing more is loaded

    // Makes `index` current and its rows of `kv_head` readable, or poisons.
    template <typename Params>
    __device__ __forceinline__ void enter(const Params& p, uint32_t index, uint32_t kv_head, uint64_t* verified) {
        if (index == current) {
            return;
        }
        current = index;
        segment = reinterpret_cast<const KeySegment*>(p.segments)[index];
        if (segment.signal != 0 && !poisoned) {
            wait(p, kv_head, verified);
        }
    }

    template <typename Params>
    __device__ __forceinline__ void wait(const Params& p, uint32_t kv_head, uint64_t* verified) {
        const uint64_t wanted = p.signal_base + kv_head / p.heads_per_piece + 1;
        const bool remembered = current < offset::kVerifiedSegments;
        if (remembered && verified[current] >= wanted) {
            return;
        }
        const SpinOutcome outcome =
            spin_until_at_least(reinterpret_cast<const uint64_t*>(segment.signal), wanted, stop_words(p), p.deadline_ns);
        if (outcome.reached) {
            fence_global_to_async();
            if (remembered) verified[current] = outcome.seen;
            if constexpr (kTimed) record_wait(p, current, wanted, outcome.waited_ns);
            return;
        }
        poisoned = true;
        if (outcome.expired && p.report != 0) {
            write_report(p.report, current, kv_head, wanted, outcome);
        }
    }
};

// One tile of K or V, two panels.
__device__ __forceinline__ void load_key_tile(
    uint32_t shared, const TensorMap& map, uint32_t barrier, Coordinates5 at) {
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
        at.column = panel * kPanelColumns;
        load_box(shared + panel * kPanelBytes, map, barrier, at, Keep::kLong);
    }
}

// Each warpgroup has its own half of Q, and gets it as soon as it has no more need of the half before.
__device__ __forceinline__ void load_queries(
    const ForwardParams& p, uint32_t shared, const Barriers& barriers, const TilePlace& place, uint32_t parity) {
    Coordinates4 at = {0, static_cast<int32_t>(place.row_tile * kRows), static_cast<int32_t>(place.head),
                       static_cast<int32_t>(place.batch)};
#pragma unroll 1
    for (uint32_t warpgroup = 0; warpgroup < kConsumers; ++warpgroup) {
        const uint32_t full = barriers.q_full(warpgroup);
        const uint32_t half = shared + offset::kQ + warpgroup * kWarpgroupBytes;
        barrier_wait(barriers.q_empty(warpgroup), parity);
        barrier_expect_bytes(full, kTileBytes / kConsumers);
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
            at.column = panel * kPanelColumns;
            load_box(half + panel * kPanelBytes, p.q, full, at, Keep::kShort);
        }
        at.row += kRows / kConsumers;
    }
}

// Where a tile of K or V lies and the buffer that it goes to, in few registers: one of them waits while the next is on
// its way.
struct KeyTileAt {
    int32_t row, slab;
    uint32_t head;   // head in its group | group << 16
    uint32_t words;  // map | stage << 8 | parity << 16 | poisoned << 24: nothing is loaded

    __device__ __forceinline__ uint32_t map() const { return words & 0xFF; }
    __device__ __forceinline__ uint32_t stage() const { return (words >> 8) & 0xFF; }
    __device__ __forceinline__ uint32_t parity() const { return (words >> 16) & 0xFF; }
    __device__ __forceinline__ bool poisoned() const { return (words >> 24) != 0; }

    __device__ __forceinline__ Coordinates5 coordinates() const {
        return {0, row, static_cast<int32_t>(head & 0xFFFF), static_cast<int32_t>(head >> 16), slab};
    }
};

// Everything that one lane issues. V of an entry follows K of the next: a buffer of K is free when its scores are there,
// one of V only after the next softmax, and K would wait behind it.
template <bool kTimed>
struct Loader {
    uint32_t shared;
    unsigned char* shared_bytes;
    Barriers barriers;
    RingPosition<kStages> ring;
    uint32_t q_parity;
    SegmentReader<kTimed> segments;
    KeyTileAt values;  // V that is due
    bool values_due;

    __device__ __forceinline__ void load(
        const ForwardParams& p, const TilePlace& place, uint32_t entry, uint32_t key_place, bool first) {
        const KeyTileAt keys = find(p, place, key_place);
        load_keys(p, place, keys, entry);
        load_due_values(p);
        values = keys;
        values_due = true;
        if (first) {
            load_queries(p, shared, barriers, place, q_parity);
            q_parity ^= 1;
        }
        ring.advance();
    }

    __device__ __forceinline__ void load_due_values(const ForwardParams& p) {
        if (!values_due) {
            return;
        }
        values_due = false;
        const uint32_t stage = values.stage();
        const uint32_t full = barriers.v_full(stage);
        barrier_wait(barriers.v_empty(stage), values.parity());
        if (values.poisoned()) {
            barrier_arrive(full);
        } else {
            barrier_expect_bytes(full, kTileBytes);
            load_key_tile(shared + offset::kV + stage * kTileBytes, p.v[values.map()], full, values.coordinates());
        }
    }

private:
    __device__ __forceinline__ KeyTileAt find(const ForwardParams& p, const TilePlace& place, uint32_t key_place) {
        const uint32_t kv_head = place.head / p.group;
        segments.enter(p, key_place >> 20, kv_head, reinterpret_cast<uint64_t*>(shared_bytes + offset::kVerified));
        const KeySegment& segment = segments.segment;
        const uint32_t group = kv_head / p.heads_per_group[segment.map];
        const uint32_t head = kv_head - group * p.heads_per_group[segment.map];
        return {static_cast<int32_t>((key_place & 0xFFFFF) * kKeys), static_cast<int32_t>(segment.slab + place.batch),
                head | group << 16, segment.map | ring.stage << 8 | ring.parity << 16 | segments.poisoned << 24};
    }

    __device__ __forceinline__ void load_keys(
        const ForwardParams& p, const TilePlace& place, const KeyTileAt& keys, uint32_t entry) {
        const uint32_t stage = ring.stage;
        const uint32_t full = barriers.k_full(stage);
        barrier_wait(barriers.k_empty(stage), ring.parity);
        reinterpret_cast<uint32_t*>(shared_bytes + offset::kEntry)[stage] = keys.poisoned() ? entry | kPoisoned : entry;
        if (keys.poisoned()) {
            barrier_arrive(full);
            return;
        }
        const bool partial = class_of(entry) != BlockClass::kFull;
        barrier_expect_bytes(full, kTileBytes + (partial ? kBandsBytes : 0));
        load_key_tile(shared + offset::kK + stage * kTileBytes, p.k[keys.map()], full, keys.coordinates());
        if (partial) {
            const uint64_t tile = static_cast<uint64_t>(place.mask(p)) * p.key_tiles + key_tile_of(entry);
            load_bytes(shared + offset::kBands + stage * kBandsBytes,
                       reinterpret_cast<const unsigned char*>(p.bands) + tile * kBandsBytes, kBandsBytes, full);
        }
    }
};

// The whole life of the producer warp.
template <bool kTimed>
__device__ __forceinline__ void produce(const ForwardParams& p, unsigned char* shared_bytes) {
    const uint32_t lane = threadIdx.x;
    const uint32_t shared = shared_address(shared_bytes);
    Loader<kTimed> loader = {shared, shared_bytes, Barriers{shared + offset::kBarriers}, {0, 1}, 1, {}, {}, false};
    if (lane == 0) {
        if constexpr (kTimed) record_begin(p.times, global_nanoseconds());
        prefetch_map(p.q);
        prefetch_map(p.k[0]);
        prefetch_map(p.v[0]);
    }
    RingPosition<2> tiles = {0, 1};
    NextTile next;
    next.index = blockIdx.x;
    for (next.step = 1; next.step < kNextTileSteps;) {
        next.advance(p);
    }
    while (true) {
        const NextTile tile = next;
        ListReader list = tile.list;
        const bool more = tile.index < p.tiles;
        if (lane == 0 && stop_words(p).set()) {
            loader.segments.poisoned = true;
        }
        const bool poisoned = __shfl_sync(0xFFFFFFFFu, loader.segments.poisoned, 0);
        const uint32_t count = poisoned || !more ? 0 : list.count;
        if (lane == 0) {
            barrier_wait(loader.barriers.tile_empty(tiles.stage), tiles.parity);
            reinterpret_cast<TileMessage*>(shared_bytes + offset::kTile)[tiles.stage] = {
                more ? tile.place.query_head(p) : kNoMoreTiles, tile.place.row_tile, count, poisoned};
            barrier_arrive(loader.barriers.tile_full(tiles.stage));
        }
        const RingPosition<2> last = tiles;
        tiles.advance();
        if (lane == 0 && count == 0) {
            loader.load_due_values(p);
        }
        if (!more) {
            if (kTimed && lane == 0) {
                // The consumers have read that there is no more when their last tile is on its way out.
                barrier_wait(loader.barriers.tile_empty(last.stage), last.parity ^ 1);
                record_end(p.times, global_nanoseconds());
            }
            break;
        }
        loader.segments.current = 0xFFFFFFFFu;
        next.step = 0;
        for (uint32_t i = 0; i < count; ++i) {
            list.prefetch(p, tile.place.list(p), i);
            const uint32_t entry = __shfl_sync(0xFFFFFFFFu, list.entry, i % 32);
            const uint32_t place = __shfl_sync(0xFFFFFFFFu, list.place, i % 32);
            if (lane == 0) {
                loader.load(p, tile.place, entry, place, i == 0);
            }
            __syncwarp();
            // Claimed late: a tile that waits in a busy CTA is one that an idle CTA could have had.
            if (i + kNextTileSteps >= count) {
                next.advance(p);
            }
        }
        while (next.step < kNextTileSteps) {
            next.advance(p);
        }
    }
    if (lane == 0) {
        finish_claims(p.claims);
    }
}

}  // namespace fm3
