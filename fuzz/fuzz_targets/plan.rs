//! Any text as a plan, and a good plan with one number changed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fm_cp_fuzz::inputs::plan(data));
