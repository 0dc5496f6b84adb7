//! Any bytes as a safetensors file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fm_cp_fuzz::inputs::safetensors_file(data));
