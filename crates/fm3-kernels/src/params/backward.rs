//! What the backward kernels take, in the order of their launches: prepare, gradients, finish.
//!
//! Fields that begin with *Parts* or *Ordered* are read by those forms of the kernel only (decision 0007).
use super::forward::{KEY_MAPS, TensorMap};
use super::layout::{device_struct, kernel_params};

device_struct! {
    /// fm3_bwd_prepare: row sums, and dQ sums set to 0. Grid (rows_padded / 16, hq, b), 256 threads.
    #[repr(C)]
    pub struct BackwardPrepareParams {
        /// Output of the forward pass, 16-bit [b, sq, hq, 128]; rows are multiples of 16 bytes apart.
        pub o: u64,
        /// Its gradient dO, as the output.
        pub dout: u64,
        /// Logsumexp, f32 [b, hq, sq].
        pub lse: u64,
        /// Written: f32 [b, hq, rows_padded]: LSE * log2(e); +inf for rows that see nothing and rows past sq.
        pub lse2: u64,
        /// Written: f32 [b, hq, rows_padded]: sum over d of dO * O; 0 for rows past sq.
        pub delta: u64,
        /// Written: 0, f32 [b, hq, row_tiles * 2, 64 * 128].
        pub dq_sums: u64,
        /// From one sequence, row and head of O to the next, elements.
        pub o_strides: [u64; 3],
        /// From one sequence, row and head of dO to the next, elements.
        pub dout_strides: [u64; 3],
        /// Query heads, hq.
        pub heads_q: u32,
        /// Query rows, sq.
        pub seq_q: u32,
        /// row_tiles * 128.
        pub rows_padded: u32,
        /// Fills the struct to a multiple of its alignment.
        pub reserved: u32,
    }
}

device_struct! {
    /// fm3_bwd_d128: dK, dV of every key row, and dQ sums. Addresses are of device memory.
    #[repr(C)]
    pub struct BackwardParams {
        /// Queries: {d, seq, heads, batch}, box {64, 64, 1, 1}.
        pub q: TensorMap,
        /// Gradient of the output, like the queries.
        pub dout: TensorMap,
        /// Keys: {d, rows, heads of a group, groups, slabs}, box {64, 128, 1, 1, 1}; one per distinct segment length.
        pub k: [TensorMap; KEY_MAPS],
        /// Values, like the keys.
        pub v: [TensorMap; KEY_MAPS],
        /// Written: gradients of the keys, the keys' dims, box {64, 64, 1, 1, 1}.
        pub dk: [TensorMap; KEY_MAPS],
        /// Written: gradients of the values, like those of the keys.
        pub dv: [TensorMap; KEY_MAPS],
        /// From fm3_bwd_prepare.
        pub lse2: u64,
        /// From fm3_bwd_prepare.
        pub delta: u64,
        /// Added to: f32 [b, hq, row_tiles * 2, 64 * 128]: per 64 rows, in the order of the consumers' registers.
        pub dq_sums: u64,
        /// Masked rows of each column, i32 [mb, mh, key_tiles * 128, 4]: a_start, b_end, a_end, b_start.
        pub bands: u64,
        /// Entries of each key tile, u32 [mb, mh, key_tiles].
        pub counts_t: u64,
        /// Row tile << 2 | class, u32 [mb, mh, key_tiles, row_tiles].
        pub entries_t: u64,
        /// Key tiles in the order of work, u32 [mb, mh, key_tiles].
        pub ranked_t: u64,
        /// Segment << 20 | tile within it, u32 `[key_tiles]`.
        pub places: u64,
        /// Table of KeySegment; only parts look at signals.
        pub segments: u64,
        /// Tiles claimed and blocks done, u32 `[2]`; zero before the first launch, and after each.
        pub claims: u64,
        /// Tiles of the launch, b * hkv * key_tiles (parts: * part_tiles).
        pub tiles: u32,
        /// Tiles of 128 query rows, ceil(sq / 128).
        pub row_tiles: u32,
        /// Tiles of at most 128 key rows, through all segments.
        pub key_tiles: u32,
        /// Query rows, sq.
        pub seq_q: u32,
        /// Query heads, hq.
        pub heads_q: u32,
        /// KV heads, hkv.
        pub heads_kv: u32,
        /// Query heads per KV head.
        pub group: u32,
        /// KV heads whose tiles are neighbours in the order of work: a section.
        pub section_heads: u32,
        /// Query heads per mask head.
        pub heads_per_mask: u32,
        /// Mask heads, mh.
        pub mask_heads: u32,
        /// Mask heads from one sequence to the next: mh, or 0 when all sequences share one mask.
        pub mask_batch_step: u32,
        /// KV heads of a group, of each key map.
        pub heads_per_group: [u32; KEY_MAPS],
        /// Softmax scale * log2(e), above 0.
        pub scale_log2: f32,
        /// Softmax scale, above 0.
        pub scale: f32,
        /// Parts: key tiles of the launch; `tiles` is b * hkv * part_tiles, and `ranked_t` has this pitch.
        pub part_tiles: u32,
        /// Ordered: entries of each row tile, u32 [mb, mh, row_tiles].
        pub counts: u64,
        /// Ordered: key tile << 2 | class, u32 [mb, mh, row_tiles, key_tiles].
        pub entries: u64,
        /// Ordered: from fm3_bwd_order, u32 [mb, mh, key_tiles].
        pub positions: u64,
        /// Ordered: additions that each half of the columns of a block of dQ has had, u32 [b, hq, row_tiles * 2, 2]; zero
        /// before the first launch.
        pub turns: u64,
        /// Parts: a u32 that becomes 1 when dQ is not complete.
        pub poisoned: u64,
        /// Parts: table of GradSegment; 0: maps and slabs as the keys', zeroes for what nobody sees, nothing added.
        pub grad_segments: u64,
        /// Parts: table of GradSlot.
        pub grad_slots: u64,
        /// Parts: a WaitReport; 0: none.
        pub report: u64,
        /// Parts: a u32 that ends the launch when it is not zero; 0: none.
        pub abort: u64,
        /// Parts: a segment's rows of KV head h are there when its signal >= signal_base + h / heads_per_piece + 1.
        pub signal_base: u64,
        /// Parts: longest wait for a signal, nanoseconds; 0: no limit.
        pub deadline_ns: u64,
        /// Ordered: longest wait for a turn, nanoseconds; 0: no limit.
        pub turn_deadline_ns: u64,
        /// Parts: KV heads that arrive together.
        pub heads_per_piece: u32,
        /// Parts: 1: no gradients of its own, slots alone are added up.
        pub sum_only: u32,
        /// Parts: KV heads of a group, of each map of dK and dV.
        pub grad_heads_per_group: [u32; KEY_MAPS],
        /// Split: parts that the query heads of each KV head are in. `heads_kv`, `group`, `tiles` and `section_heads` are
        /// then of parts: part i of KV head h is KV head h * split + i.
        pub split: u32,
        /// Ranks of a section's key tiles; those of larger rank follow, of all KV heads side by side.
        pub section_ranks: u32,
        /// Split, written: dK, f32 [b, hkv, split, key_tiles, 128 * 128], each tile in the order of the consumers'
        /// registers.
        pub dk_sums: u64,
        /// Split, written: dV, likewise.
        pub dv_sums: u64,
        /// Fills the struct to a multiple of its alignment.
        pub rest: [u32; 22],
    }
}

device_struct! {
    /// Where dK and dV of a key segment go, and what is added to them. A table of them is in device memory.
    #[repr(C)]
    pub struct GradSegment {
        /// Slot of dK: f32 [b, hkv, tiles, 128 * 128], each tile in the order of the consumers' registers; 0: none.
        pub dk: u64,
        /// Slot of dV, like that of dK.
        pub dv: u64,
        /// Which of the maps of dK and dV, below KEY_MAPS.
        pub map: u32,
        /// Slab of the map that holds the first sequence.
        pub slab: u32,
        /// Key tiles of the segment.
        pub tiles: u32,
        /// First of the slots that are added, in the table of GradSlot.
        pub first_slot: u32,
        /// How many are added, in the order of the table.
        pub slots: u32,
        /// 1: tiles that nobody sees are not written.
        pub skip_unseen: u32,
    }
}

device_struct! {
    /// dK and dV of one segment from somebody else.
    #[repr(C)]
    pub struct GradSlot {
        /// dK, as in GradSegment.
        pub dk: u64,
        /// dV, likewise.
        pub dv: u64,
        /// u8 [b, hkv, tiles]: 0 for tiles that are not in the slot; address 0: all are.
        pub written: u64,
    }
}

device_struct! {
    /// fm3_bwd_order: the key tiles of a launch by work. Grid (mb * mh), 1024 threads.
    #[repr(C)]
    pub struct BackwardOrderParams {
        /// All key tiles by work, u32 [mb, mh, key_tiles].
        pub ranked_t: u64,
        /// Written: those of the launch, in the same order, u32 [mb, mh, part_tiles].
        pub order: u64,
        /// Written at tiles of the launch: base + place in its order + 1, u32 [mb, mh, key_tiles], where 0 means not
        /// yet; address 0: none.
        pub positions: u64,
        /// Key tiles of all segments.
        pub key_tiles: u32,
        /// First key tile of the launch.
        pub first_tile: u32,
        /// Key tiles of the launch.
        pub part_tiles: u32,
        /// Key tiles of the launches before.
        pub base: u32,
    }
}

device_struct! {
    /// fm3_bwd_finish: dQ = scale * sums, rounded once. Grid (2 * row_tiles, hq, b), 256 threads.
    #[repr(C)]
    pub struct BackwardFinishParams {
        /// From fm3_bwd_d128.
        pub dq_sums: u64,
        /// Written: 16-bit [b, sq, hq, 128]; rows are multiples of 16 bytes apart.
        pub dq: u64,
        /// From one sequence, row and head of dQ to the next, elements.
        pub dq_strides: [u64; 3],
        /// Query heads, hq.
        pub heads_q: u32,
        /// Query rows, sq.
        pub seq_q: u32,
        /// Blocks of 64 rows, 2 * row_tiles.
        pub blocks: u32,
        /// Softmax scale.
        pub scale: f32,
        /// Parts: dQ is NaN when this u32 is not zero.
        pub poisoned: u64,
    }
}

device_struct! {
    /// fm3_bwd_sum: dK and dV of the parts of KV heads, added in their order. Grid (2 * key_tiles, hkv, b), 256 threads.
    #[repr(C)]
    pub struct BackwardSumParams {
        /// From fm3_bwd_d128_split: dK, f32 [b, hkv, split, key_tiles, 128 * 128].
        pub dk_sums: u64,
        /// Likewise dV.
        pub dv_sums: u64,
        /// Written: dK, [b, sk, hkv, 128], 16-bit or f32; rows are multiples of 16 bytes apart.
        pub dk: u64,
        /// Written: dV, likewise.
        pub dv: u64,
        /// From one sequence, row and head of dK to the next, elements.
        pub dk_strides: [u64; 3],
        /// Of dV.
        pub dv_strides: [u64; 3],
        /// KV heads, hkv.
        pub heads_kv: u32,
        /// Parts of each.
        pub split: u32,
        /// Key rows, sk.
        pub seq_k: u32,
        /// Tiles of 128 key rows.
        pub key_tiles: u32,
    }
}

kernel_params!(
    BackwardPrepareParams,
    BackwardOrderParams,
    BackwardParams,
    BackwardFinishParams,
    BackwardSumParams
);
