#!/usr/bin/env bash
# Checks that the tools are there which `cargo xtask ci` calls, and adds what rustup can add.
set -euo pipefail

if ! command -v cargo > /dev/null; then
    echo "cargo is missing: install Rust 1.95 or later (https://rustup.rs)" >&2
    exit 1
fi
for component in rustfmt clippy; do
    tool=cargo-${component/rustfmt/fmt}
    if ! "$tool" --version > /dev/null 2>&1; then
        echo "$component is missing: adding it with rustup" >&2
        rustup component add "$component"
    fi
done
cargo --version
cargo fmt --version
cargo clippy --version
if ! cargo nextest --version 2> /dev/null; then
    echo "cargo-nextest is not installed: tests run with cargo test"
fi
if ! cargo deny --version 2> /dev/null; then
    echo "cargo-deny is not installed: licences, bans and sources are not checked"
fi
