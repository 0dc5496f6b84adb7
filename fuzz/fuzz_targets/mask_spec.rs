//! Any text as the name of a mask.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fm_cp_fuzz::inputs::mask_spec(data));
