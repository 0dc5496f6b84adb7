//! What the three kernels take that prepare a mask: bands and summaries of key tiles, lists, ranks.
use super::layout::{device_struct, kernel_params};

device_struct! {
    /// fm3_mask_tiles: bands of every column and a summary of every key tile. Grid (key_tiles, mh, mb), 128 threads.
    #[repr(C)]
    pub struct MaskTilesParams {
        /// The caller's mask, i32 [mb, mh, seq_k, columns].
        pub bounds: u64,
        /// First mask column and valid columns of each key tile, u32 [key_tiles, 2].
        pub tile_columns: u64,
        /// Written: masked rows of each column, i32 [mb, mh, key_tiles * 128, 4].
        pub bands: u64,
        /// Written: i32 [mb, mh, key_tiles, 8]: start and end of common_a, common_b, reach_a, reach_b.
        pub summaries: u64,
        /// Query rows, sq.
        pub seq_q: u32,
        /// Key rows, sk.
        pub seq_k: u32,
        /// Bounds per key column: 0 (no mask), 1, 2 or 4.
        pub columns: u32,
        /// 1: causal, 0: not.
        pub causal: u32,
        /// Key tiles.
        pub key_tiles: u32,
        /// Fills the struct to a multiple of its alignment.
        pub reserved: u32,
    }
}

device_struct! {
    /// fm3_mask_lists: entries and work of every tile. Grid (ceil(lists / 4), mh, mb), 128 threads: a warp per list.
    #[repr(C)]
    pub struct MaskListsParams {
        /// From fm3_mask_tiles.
        pub bands: u64,
        /// From fm3_mask_tiles.
        pub summaries: u64,
        /// Written: entries of each list, u32 [mb, mh, lists].
        pub counts: u64,
        /// Written: other tile << 2 | class, u32 [mb, mh, lists, other tiles]; words past the count are 0xFFFFFFFF.
        pub entries: u64,
        /// Written: 2 * full + 3 * partial, u32 [mb, mh, lists].
        pub work: u64,
        /// Query rows, sq.
        pub seq_q: u32,
        /// Row tiles: the lists, or the other tiles when transposed.
        pub row_tiles: u32,
        /// Key tiles: the other tiles, or the lists when transposed.
        pub key_tiles: u32,
        /// 1: a list per key tile, 0: a list per row tile.
        pub transposed: u32,
    }
}

device_struct! {
    /// fm3_mask_rank: tiles by work, largest first. Grid (1, mh, mb), 1024 threads, 8 * padded bytes of shared memory.
    #[repr(C)]
    pub struct MaskRankParams {
        /// From fm3_mask_lists, u32 [mb, mh, lists].
        pub work: u64,
        /// Written: tiles, u32 [mb, mh, lists].
        pub ranked: u64,
        /// Tiles, at most 8192.
        pub lists: u32,
        /// Smallest power of two that is at least lists.
        pub padded: u32,
        /// 1: tiles by the grade of their work, half an octave each; 0: by their work.
        pub graded: u32,
        /// Fills the struct to a multiple of its alignment.
        pub reserved: u32,
    }
}

kernel_params!(MaskTilesParams, MaskListsParams, MaskRankParams);
