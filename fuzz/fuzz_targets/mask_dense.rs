//! Any pattern of visible pairs as a mask.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fm_cp_fuzz::inputs::mask_dense(data));
