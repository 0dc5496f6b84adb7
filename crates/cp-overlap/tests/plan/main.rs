//! Folds, needs and plans of random problems against brute force, and damaged plans against the checker.
mod built;
mod damaged;
mod fold_and_needs;
mod problems;
