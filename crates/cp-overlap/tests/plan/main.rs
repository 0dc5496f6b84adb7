//! Folds, needs and plans of random problems against brute force, and damaged plans against the checker.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test, also in helpers")]

mod built;
mod damaged;
mod fold_and_needs;
mod keys;
mod problems;
