//! Any bytes as an npy file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fm_cp_fuzz::inputs::npy_file(data));
