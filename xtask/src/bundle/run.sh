#!/usr/bin/env bash
# Runs what `cargo xtask bundle` packed, on a machine with a Hopper GPU and without cargo.
#
#   run.sh [--out DIR] tests [WORD...]      GPU tests; only those whose names contain a word
#   run.sh [--out DIR] jitter [WORD...]     the same with kernels that pause at random, for each seed
#   run.sh [--out DIR] sanitize [WORD...]   under compute-sanitizer: memcheck, then synccheck
#   run.sh [--out DIR] bench [FLAGS]        cargo xtask bench: --json F, --peers; --help lists the rest
#   run.sh [--out DIR] bench-fabric [FLAGS] cargo xtask bench-fabric: --json F, --svg F; --help lists the rest
#   run.sh [--out DIR] bench-multinode [FLAGS]  the context-parallel forward on all GPUs: --json F; --help lists the rest
#
# With --out, or the variable OUT, a copy of the output goes to one file there for each command, and bench's JSON.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Whether program $1 has tests to run whose names contain one of the words behind it: those that are only started by
# others (ignored) are none. A program that cannot list its tests has some: it is run, and fails.
has_tests() {
    local program=$1 all ignored
    shift
    all=$("$program" --list "$@") || return 0
    ignored=$("$program" --list --ignored "$@") || return 0
    [[ $(grep -c ': test$' <<<"$all") -gt $(grep -c ': test$' <<<"$ignored") ]]
}

# Runs the test programs of folder $1 behind the command in `under`; those without a test of the words are passed over.
# That no test ran at all is a failure too.
run_tests() {
    local folder=$1 failed=0 ran=0 log
    shift
    log=$(mktemp)
    for program in "$folder"/gpu_*; do
        has_tests "$program" "$@" || continue
        echo "=== $(basename "$program") $*"
        # One at a time: a kernel that waits for a signal must not wait for another test's.
        "${under[@]}" "$program" --test-threads=1 "$@" 2>&1 | tee "$log" || failed=1
        if grep -q '^test result: .* [1-9][0-9]* passed' "$log"; then
            ran=1
        fi
    done
    rm -f "$log"
    if [[ $ran == 0 ]]; then
        echo "FAILED: no test passed"
        failed=1
    fi
    return $failed
}

run_jitter() {
    local failed=0 folder
    for kernels in "$here"/jitter/*; do
        # Programs look for kernels beside themselves first.
        folder=$(mktemp -d)
        cp "$here"/gpu_* "$kernels"/*.cubin "$folder"
        echo "=== kernels of ${kernels##*/}"
        run_tests "$folder" "$@" || failed=1
        rm -r "$folder"
    done
    return $failed
}

run_sanitizer() {
    local failed=0
    for tool in memcheck synccheck; do
        echo "=== compute-sanitizer --tool $tool"
        under=(compute-sanitizer --tool "$tool" --error-exitcode 9)
        run_tests "$here" "$@" || failed=1
    done
    return $failed
}

# Passes the output on, and keeps it where that is wanted.
keep() {
    if [[ -n $out ]]; then
        mkdir -p "$out"
        tee "$out/$1"
    else
        cat
    fi
}

out=${OUT:-}
if [[ ${1:-} == --out ]]; then
    out=${2:?--out needs a folder}
    shift 2
fi
action=${1:-}
shift || true
under=()
export FM_REQUIRE_GPU=1

# NVSHMEM as Python's packages have it; the system's is found without help.
nvshmem=$(python3 -c 'import importlib.util as u
spec = u.find_spec("nvidia.nvshmem")
print(list(spec.submodule_search_locations)[0] + "/lib" if spec else "")' 2>/dev/null || true)
if [[ -n $nvshmem ]]; then
    export LD_LIBRARY_PATH=$nvshmem${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

case $action in
tests)
    run_tests "$here" "$@" | keep tests.log
    ;;
jitter)
    run_jitter "$@" | keep jitter.log
    ;;
sanitize)
    # Under the sanitizer a case takes a hundred times as long: by default those at the edges of tiles and segments.
    if [[ $# == 0 ]]; then
        set -- lengths_around random_masks one_to_64
    fi
    run_sanitizer "$@" | keep sanitize.log
    ;;
bench)
    if [[ -n $out && " $* " != *" --json "* ]]; then
        mkdir -p "$out"
        set -- "$@" --json "$out/bench.json"
    fi
    "$here/xtask" bench "$@" | keep bench.txt
    ;;
bench-multinode)
    if [[ -n $out && " $* " != *" --json "* ]]; then
        mkdir -p "$out"
        set -- "$@" --json "$out/multinode.json"
    fi
    "$here/xtask" bench-multinode "$@" | keep multinode.txt
    ;;
bench-fabric)
    if [[ -n $out && " $* " != *" --json "* ]]; then
        mkdir -p "$out"
        set -- "$@" --json "$out/fabric.json" --svg "$out/fabric.svg"
    fi
    "$here/fabric-bench" "$@" | keep fabric.txt
    ;;
*)
    sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 2
    ;;
esac
