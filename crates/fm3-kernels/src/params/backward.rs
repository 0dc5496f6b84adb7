//! What the backward kernels take, in the order of their launches: prepare, gradients, finish.
use super::forward::{KEY_MAPS, TensorMap};
use super::layout::{device_struct, kernel_params};

device_struct! {
    /// fm3_bwd_prepare: row sums, and dQ sums set to 0. Grid (ceil(rows_padded / 8), hq, b), 256 threads.
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
        /// Key tiles by work, largest first, u32 [mb, mh, key_tiles].
        pub ranked_t: u64,
        /// Segment << 20 | tile within it, u32 `[key_tiles]`.
        pub places: u64,
        /// Table of KeySegment; signals are not looked at.
        pub segments: u64,
        /// Tiles claimed and blocks done, u32 `[2]`; zero before the first launch, and after each.
        pub claims: u64,
        /// Tiles of the launch, b * hkv * key_tiles.
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
        /// KV heads whose tiles are neighbours in the order of work.
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
        /// Fills the struct to a multiple of its alignment.
        pub reserved: [u32; 27],
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
    }
}

kernel_params!(BackwardPrepareParams, BackwardParams, BackwardFinishParams);
