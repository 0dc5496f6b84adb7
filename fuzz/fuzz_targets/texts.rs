//! Any text as a fault, a sharding, an element type.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fm_cp_fuzz::inputs::texts(data));
