// Prepared masks: bands and summaries of key tiles, block lists of row tiles and of key tiles, and their order by work.
// The same words as `MaskTables` of the crate fm3-kernels gives.
#include <climits>
#include <cstdint>

#include "fm3/generated/params.h"

extern "C" __device__ const unsigned long long fm3_abi_hash = FM3_ABI_HASH;

namespace fm3 {

constexpr int kTileRows = 128;
constexpr int kTileColumns = 128;
constexpr uint32_t kAllLanes = 0xFFFFFFFFu;
constexpr uint32_t kNoEntry = 0xFFFFFFFFu;

// Rows start <= i < end.
struct RowRange {
    int start, end;

    __device__ __forceinline__ bool empty() const { return start >= end; }
    __device__ __forceinline__ int length() const { return max(end - start, 0); }
    __device__ __forceinline__ RowRange within(RowRange other) const {
        return {max(start, other.start), min(end, other.end)};
    }
};

// Masked rows of a column. An empty `a` is at INT_MAX and an empty `b` at 0, so that a column which needs no check
// against `a.end` and `b.start` needs none when a band is empty either.
struct ColumnBands {
    RowRange a, b;

    __device__ __forceinline__ int masked_in(RowRange rows) const {
        const RowRange in_a = a.within(rows), in_b = b.within(rows);
        return in_a.length() + in_b.length() - in_a.within(in_b).length();
    }
};

__device__ __forceinline__ ColumnBands ordered(RowRange x, RowRange y, int seq_q) {
    constexpr RowRange kNoA = {INT_MAX, INT_MAX}, kNoB = {0, 0};
    if (!x.empty() && !y.empty()) {
        const bool x_is_a = x.start > y.start || (x.start == y.start && x.end >= y.end);
        return x_is_a ? ColumnBands{x, y} : ColumnBands{y, x};
    }
    const RowRange only = x.empty() ? y : x;
    if (only.empty()) {
        return {kNoA, kNoB};
    }
    return only.start == 0 && only.end < seq_q ? ColumnBands{kNoA, only} : ColumnBands{only, kNoB};
}

// The definition table of `fm3_kernels::mask`, in code.
__device__ __forceinline__ ColumnBands decode(const MaskTilesParams& p, const int* bounds, uint32_t column) {
    const int seq_q = static_cast<int>(p.seq_q);
    const auto clip = [seq_q](int start, int end) { return RowRange{min(start, seq_q), min(end, seq_q)}; };
    const RowRange none = {0, 0};
    const long long diagonal = static_cast<long long>(column) + p.seq_q - p.seq_k;
    const RowRange above = p.causal ? RowRange{0, static_cast<int>(max(diagonal, 0ll))} : none;
    switch (p.columns) {
        case 1:
            return ordered(clip(bounds[0], INT_MAX), above, seq_q);
        case 2:
            return p.causal ? ordered(clip(bounds[0], bounds[1]), above, seq_q)
                            : ordered(clip(bounds[0], INT_MAX), clip(0, bounds[1]), seq_q);
        case 4:
            return ordered(clip(bounds[0], bounds[1]), clip(bounds[2], bounds[3]), seq_q);
        default:
            return ordered(none, above, seq_q);
    }
}

// What all columns of a key tile mask, and the reach of what any of them masks, band by band.
struct Summary {
    ColumnBands common, reach;
};

// One thread per column.
__device__ __forceinline__ void mask_tiles(const MaskTilesParams& p) {
    const uint64_t mask = blockIdx.z * gridDim.y + blockIdx.y;
    const uint64_t tile = mask * p.key_tiles + blockIdx.x;
    const uint2 columns = reinterpret_cast<const uint2*>(p.tile_columns)[blockIdx.x];
    ColumnBands bands = {{0, INT_MAX}, {0, 0}};  // past the segment: all masked
    if (threadIdx.x < columns.y) {
        const uint32_t column = columns.x + threadIdx.x;
        const int* bounds = reinterpret_cast<const int*>(p.bounds) + (mask * p.seq_k + column) * p.columns;
        bands = decode(p, bounds, column);
    }
    reinterpret_cast<int4*>(p.bands)[tile * kTileColumns + threadIdx.x] =
        make_int4(bands.a.start, bands.b.end, bands.a.end, bands.b.start);

    __shared__ int partial[4][8];
    const bool has_a = !bands.a.empty(), has_b = !bands.b.empty();
    const int greatest[] = {bands.a.start, bands.b.start, has_a ? bands.a.end : 0, has_b ? bands.b.end : 0};
    const int least[] = {bands.a.end, bands.b.end, has_a ? bands.a.start : INT_MAX, has_b ? bands.b.start : INT_MAX};
    for (int i = 0; i < 4; ++i) {
        const int high = __reduce_max_sync(kAllLanes, greatest[i]);
        const int low = __reduce_min_sync(kAllLanes, least[i]);
        if (threadIdx.x % 32 == 0) {
            partial[threadIdx.x / 32][i] = high;
            partial[threadIdx.x / 32][4 + i] = low;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        int high[4], low[4];
        for (int i = 0; i < 4; ++i) {
            high[i] = max(max(partial[0][i], partial[1][i]), max(partial[2][i], partial[3][i]));
            low[i] = min(min(partial[0][4 + i], partial[1][4 + i]), min(partial[2][4 + i], partial[3][4 + i]));
        }
        reinterpret_cast<Summary*>(p.summaries)[tile] = {{{high[0], low[0]}, {high[1], low[1]}},
                                                         {{low[2], high[2]}, {low[3], high[3]}}};
    }
}

enum class Verdict : uint32_t { kFull = 0, kSimple = 1, kGeneral = 2, kSkip = 3, kUnknown = 4 };

__device__ __forceinline__ Verdict judge(const Summary& summary, RowRange rows) {
    if (summary.common.masked_in(rows) == rows.length()) return Verdict::kSkip;
    if (summary.reach.masked_in(rows) == 0) return Verdict::kFull;
    return Verdict::kUnknown;
}

// From the columns themselves; a whole warp, all lanes get the answer.
__device__ __forceinline__ Verdict inspect(const int4* bands, RowRange rows) {
    bool all_masked = true, any_masked = false, simple = true;
    for (uint32_t column = threadIdx.x % 32; column < kTileColumns; column += 32) {
        const int4 words = bands[column];
        const ColumnBands column_bands = {{words.x, words.z}, {words.w, words.y}};
        const int masked = column_bands.masked_in(rows);
        all_masked &= masked == rows.length();
        any_masked |= masked > 0;
        simple &= (column_bands.a.end >= rows.end || column_bands.a.start >= rows.end) &&
                  (column_bands.b.start <= rows.start || column_bands.b.end <= rows.start);
    }
    if (__all_sync(kAllLanes, all_masked)) return Verdict::kSkip;
    if (!__any_sync(kAllLanes, any_masked)) return Verdict::kFull;
    return __all_sync(kAllLanes, simple) ? Verdict::kSimple : Verdict::kGeneral;
}

// One warp per list: of a row tile (over key tiles), or transposed. Each lane judges a block; what the summary leaves
// open the warp inspects together.
__device__ __forceinline__ void mask_lists(const MaskListsParams& p) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t list = blockIdx.x * 4 + threadIdx.x / 32;
    const uint32_t lists = p.transposed ? p.key_tiles : p.row_tiles;
    const uint32_t pitch = p.transposed ? p.row_tiles : p.key_tiles;
    if (list >= lists) {
        return;
    }
    const uint64_t mask = blockIdx.z * gridDim.y + blockIdx.y;
    const Summary* summaries = reinterpret_cast<const Summary*>(p.summaries) + mask * p.key_tiles;
    const int4* bands = reinterpret_cast<const int4*>(p.bands) + mask * p.key_tiles * kTileColumns;
    uint32_t* entries = reinterpret_cast<uint32_t*>(p.entries) + (mask * lists + list) * pitch;
    const auto rows_of = [&p](uint32_t tile) {
        const uint32_t start = tile * kTileRows;
        return RowRange{static_cast<int>(start), static_cast<int>(min(start + kTileRows, p.seq_q))};
    };
    uint32_t count = 0, work = 0;
    for (uint32_t first = 0; first < pitch; first += 32) {
        const uint32_t other = first + lane;
        const uint32_t key_tile = p.transposed ? list : other;
        const uint32_t row_tile = p.transposed ? other : list;
        Verdict verdict = Verdict::kSkip;
        if (other < pitch) {
            verdict = judge(summaries[key_tile], rows_of(row_tile));
        }
        for (uint32_t open = __ballot_sync(kAllLanes, verdict == Verdict::kUnknown); open != 0; open &= open - 1) {
            const uint32_t owner = __ffs(open) - 1;
            const uint32_t tile = __shfl_sync(kAllLanes, key_tile, owner);
            const RowRange rows = rows_of(__shfl_sync(kAllLanes, row_tile, owner));
            const Verdict answer = inspect(bands + static_cast<uint64_t>(tile) * kTileColumns, rows);
            if (lane == owner) verdict = answer;
        }
        const bool listed = verdict != Verdict::kSkip;
        const uint32_t taken = __ballot_sync(kAllLanes, listed);
        if (listed) {
            entries[count + __popc(taken & ((1u << lane) - 1))] = other << 2 | static_cast<uint32_t>(verdict);
            work += verdict == Verdict::kFull ? 2 : 3;
        }
        count += __popc(taken);
    }
    for (uint32_t i = count + lane; i < pitch; i += 32) {
        entries[i] = kNoEntry;
    }
    work = __reduce_add_sync(kAllLanes, work);
    if (lane == 0) {
        reinterpret_cast<uint32_t*>(p.counts)[mask * lists + list] = count;
        reinterpret_cast<uint32_t*>(p.work)[mask * lists + list] = work;
    }
}

// Half octaves: 0 for no work, then 1 + floor(2 log2(work)). work / 2^octave is in 1..2, its square in 1..4.
__device__ __forceinline__ uint32_t grade(uint32_t work) {
    if (work == 0) {
        return 0;
    }
    const uint32_t octave = 31 - __clz(work);
    return 1 + 2 * octave + static_cast<uint32_t>(static_cast<uint64_t>(work) * work >> (2 * octave + 1));
}

// Bitonic sort in shared memory of (most work or highest grade, smallest index) first.
__device__ __forceinline__ void mask_rank(const MaskRankParams& p) {
    extern __shared__ uint64_t keys[];
    const uint64_t mask = blockIdx.z * gridDim.y + blockIdx.y;
    const uint32_t* work = reinterpret_cast<const uint32_t*>(p.work) + mask * p.lists;
    for (uint32_t i = threadIdx.x; i < p.padded; i += blockDim.x) {
        keys[i] = i < p.lists ? static_cast<uint64_t>(~(p.graded ? grade(work[i]) : work[i])) << 32 | i : ~0ull;
    }
    __syncthreads();
    for (uint32_t size = 2; size <= p.padded; size *= 2) {
        for (uint32_t stride = size / 2; stride > 0; stride /= 2) {
            for (uint32_t i = threadIdx.x; i < p.padded / 2; i += blockDim.x) {
                const uint32_t low = 2 * i - (i & (stride - 1)), high = low + stride;
                const bool ascending = (low & size) == 0;
                if ((keys[low] > keys[high]) == ascending) {
                    const uint64_t swapped = keys[low];
                    keys[low] = keys[high];
                    keys[high] = swapped;
                }
            }
            __syncthreads();
        }
    }
    uint32_t* ranked = reinterpret_cast<uint32_t*>(p.ranked) + mask * p.lists;
    for (uint32_t i = threadIdx.x; i < p.lists; i += blockDim.x) {
        ranked[i] = static_cast<uint32_t>(keys[i]);
    }
}

}  // namespace fm3

extern "C" __global__ void __launch_bounds__(128) fm3_mask_tiles(const __grid_constant__ fm3::MaskTilesParams p) {
    fm3::mask_tiles(p);
}

extern "C" __global__ void __launch_bounds__(128) fm3_mask_lists(const __grid_constant__ fm3::MaskListsParams p) {
    fm3::mask_lists(p);
}

extern "C" __global__ void __launch_bounds__(1024) fm3_mask_rank(const __grid_constant__ fm3::MaskRankParams p) {
    fm3::mask_rank(p);
}
