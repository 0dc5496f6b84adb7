//! One function per target.
use crate::private;

/// Any bounds of a mask.
pub fn mask_raw(data: &[u8]) {
    private::mask_raw(data);
}

/// Any pattern of visible pairs as a mask.
pub fn mask_dense(data: &[u8]) {
    private::mask_dense(data);
}

/// Any text as the name of a mask.
pub fn mask_spec(data: &[u8]) {
    private::mask_spec(data);
}

/// Any bytes as an npy file.
pub fn npy_file(data: &[u8]) {
    private::npy_file(data);
}

/// Any bytes as a safetensors file.
pub fn safetensors_file(data: &[u8]) {
    private::safetensors_file(data);
}

/// Any text as a plan, and a good plan with one number changed.
pub fn plan(data: &[u8]) {
    private::plan(data);
}

/// Any extents and strides of a view.
pub fn views(data: &[u8]) {
    private::views(data);
}

/// Any text as a fault, a sharding, an element type.
pub fn texts(data: &[u8]) {
    private::texts(data);
}

/// Any bytes as messages of a rendezvous, as another's broadcast, and as a launcher's variables.
pub fn rendezvous(data: &[u8]) {
    private::rendezvous(data);
}
