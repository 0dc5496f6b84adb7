//! What the forward kernels take: tensor maps, key segments, tables of the prepared mask, signals.
use super::layout::{device_struct, kernel_params};

/// Tensor maps of keys, and as many of values, that one launch may use: one per distinct segment length.
pub const KEY_MAPS: usize = 4;

device_struct! {
    /// A tensor map of the tensor memory accelerator (TMA), as the driver encodes it.
    #[repr(C, align(128))]
    pub struct TensorMap {
        /// Opaque to everybody but the driver and the hardware.
        pub opaque: [u8; 128],
    }
}

device_struct! {
    /// A run of key rows: where it lies, and the signal that says it has arrived. A table of them is in device memory.
    #[repr(C)]
    pub struct KeySegment {
        /// Device address of the u64 to wait for; 0: the rows are there.
        pub signal: u64,
        /// Which of the key and value maps, below KEY_MAPS.
        pub map: u32,
        /// Slab of the map that holds the first sequence; sequence b lies at slab + b.
        pub slab: u32,
    }
}

device_struct! {
    /// Written by the first thread whose wait outlasts its deadline.
    #[repr(C)]
    pub struct WaitReport {
        /// 0: nothing; 1: being written; 2: complete.
        pub state: u32,
        /// Index of the key segment.
        pub segment: u32,
        /// KV head that was waited for.
        pub kv_head: u32,
        /// Block (CTA) that waited.
        pub cta: u32,
        /// Value that the signal should have reached.
        pub wanted: u64,
        /// Value that it had.
        pub seen: u64,
        /// Nanoseconds of waiting.
        pub waited_ns: u64,
    }
}

device_struct! {
    /// When blocks waited, nanoseconds of the device's clock (`%globaltimer`). Zero before the launch.
    #[repr(C)]
    pub struct WaitTimes {
        /// The earliest begin, all bits inverted, so that the greatest is the earliest and 0 is none.
        pub begin_inverted: u64,
        /// The latest end.
        pub end: u64,
        /// Sum over blocks, nanoseconds.
        pub sum_ns: u64,
        /// The longest of a block, nanoseconds.
        pub longest_ns: u64,
        /// Blocks that waited; of the launch all of them.
        pub blocks: u64,
    }
}

device_struct! {
    /// Forward attention. Addresses are of device memory; sizes of tables are in numbers of elements.
    #[repr(C)]
    pub struct ForwardParams {
        /// Queries: {d, seq, heads, batch}, box {64, 64, 1, 1}.
        pub q: TensorMap,
        /// Output: the same dims, box {64, 64, 1, 1}.
        pub o: TensorMap,
        /// Keys: {d, rows, heads of a group, groups, slabs}, box {64, 128, 1, 1, 1}; one per distinct segment length.
        pub k: [TensorMap; KEY_MAPS],
        /// Values, like the keys.
        pub v: [TensorMap; KEY_MAPS],
        /// Logsumexp, f32 [b, hq, sq].
        pub lse: u64,
        /// Masked rows of each column, i32 [mb, mh, key_tiles * 128, 4]: a_start, b_end, a_end, b_start.
        pub bands: u64,
        /// Entries of each row tile, u32 [mb, mh, row_tiles].
        pub counts: u64,
        /// Key tile << 2 | class, u32 [mb, mh, row_tiles, key_tiles].
        pub entries: u64,
        /// Row tiles by work, largest first, u32 [mb, mh, row_tiles].
        pub ranked: u64,
        /// Segment << 20 | tile within it, u32 `[key_tiles]`.
        pub places: u64,
        /// Table of KeySegment.
        pub segments: u64,
        /// Tiles claimed and blocks done, u32 `[2]`; zero before the first launch, and after each.
        pub claims: u64,
        /// A WaitReport; 0: none.
        pub report: u64,
        /// A u32 that ends the launch when it is not zero; 0: none.
        pub abort: u64,
        /// A segment's rows of KV head h are there when its signal >= signal_base + h / heads_per_piece + 1.
        pub signal_base: u64,
        /// Longest wait for a signal, nanoseconds; 0: no limit.
        pub deadline_ns: u64,
        /// Tiles of the launch, b * hq * row_tiles.
        pub tiles: u32,
        /// Tiles of 128 query rows, ceil(sq / 128).
        pub row_tiles: u32,
        /// Tiles of at most 128 key rows, through all segments.
        pub key_tiles: u32,
        /// Query rows, sq.
        pub seq_q: u32,
        /// Query heads, hq.
        pub heads_q: u32,
        /// Query heads per KV head.
        pub group: u32,
        /// Query heads whose tiles are neighbours in the order of work; a multiple of group.
        pub section_heads: u32,
        /// KV heads that arrive together.
        pub heads_per_piece: u32,
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
        /// Timed: table of WaitTimes: one of the launch, whose blocks begin and end, then [segments, pieces].
        pub times: u64,
        /// Timed: pieces of a segment, of the table of times.
        pub pieces: u32,
        /// Fills the struct to a multiple of its alignment.
        pub reserved: [u32; 21],
    }
}

kernel_params!(ForwardParams);
