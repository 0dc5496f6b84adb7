//! Any bytes as messages of a rendezvous, as another's broadcast, and as a launcher's variables.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fm_cp_fuzz::inputs::rendezvous(data));
