//! What the GPU tests share: the device, problems on it, and what they must give.
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses its own part")]
pub mod backward;
pub mod case;
pub mod compare;
pub mod device;
pub mod differences;
pub mod gradients;
pub mod keys;
pub mod masks;
pub mod parts;
pub mod problems;
pub mod suite;
pub mod words;

pub use case::{Case, Data, Layout};
pub use compare::check;
pub use device::Gpu;
pub use suite::Suite;
pub use words::Words;
