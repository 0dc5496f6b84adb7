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
# build-kernels brings its own nvcc through pip where there is none.
if ! command -v nvcc > /dev/null && ! python3 -m pip --version > /dev/null 2>&1; then
    echo "neither nvcc nor python3 with pip: trying the system's packages" >&2
    apt-get install --yes --no-install-recommends python3-pip >&2 ||
        echo "install python3 with pip, or set CUDA_HOME to a CUDA toolkit 13.x" >&2
fi
cargo --version
cargo fmt --version
cargo clippy --version
if ! cargo nextest --version 2> /dev/null; then
    echo "cargo-nextest is not installed: tests run with cargo test"
fi
if ! cargo deny --version 2> /dev/null; then
    echo "cargo-deny is not installed: licences, bans and sources are not checked"
fi
