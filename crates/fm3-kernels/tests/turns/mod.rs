//! The backward kernel's turns as a model.
#![allow(unreachable_pub, reason = "part of a test")]
pub mod clock;
pub mod schedule;
pub mod world;
