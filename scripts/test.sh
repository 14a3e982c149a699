#!/usr/bin/env bash
# From a fresh clone to the tests: installs what is missing, builds everything, runs the everyday tests.
# usage: test.sh [--clang | --asan | --tsan | --long | --cross]
#   (none)   the preset `release`: with the compiler that CMake finds
#   --clang  the preset `clang` instead: release with clang 19
#   --asan   the preset `asan-ubsan` instead: AddressSanitizer and UndefinedBehaviorSanitizer
#   --tsan   the preset `tsan` instead: ThreadSanitizer, with clang 19 and its OpenMP
#   --long   the long tests instead: every float32 through exp, log and log1p
#   --cross  the AArch64 build under qemu instead; setup.sh --cross adds arm64 to dpkg's architectures
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

preset=release
tests=
setup=--test
case ${1:-} in
  "") ;;
  --clang) preset=clang setup=--clang ;;
  --asan) preset=asan-ubsan ;;
  --tsan) preset=tsan setup=--tsan ;;
  --long) tests=long ;;
  --cross) preset=aarch64 setup=--cross ;;
  *)
    echo "usage: test.sh [--clang | --asan | --tsan | --long | --cross]" >&2
    exit 2
    ;;
esac

scripts/setup.sh $setup
options=(-DXENT_BUILD_TESTS=ON)
case $preset in release | clang) options+=(-DXENT_BUILD_BENCH=ON) ;; esac
cmake --preset $preset "${options[@]}"
cmake --build --preset $preset

log=build/$preset/ctest.log
status=0
ctest --preset "${tests:-$preset}" | tee "$log" || status=$?

# A test called .../TARGET ran on that SIMD target alone and has asserted it; a processor that lacks it skips the test.
echo
echo "Tests that ran on one SIMD target each:"
awk '
  match($0, /Targets\/[^ ]+\/[A-Z][A-Z0-9_]*/) && /Test +#[0-9]+:/ {
    n = split(substr($0, RSTART, RLENGTH), part, "/")
    target = part[n]
    if (!(target in seen)) { seen[target] = 1; order[++count] = target }
    if (/Passed/) passed[target]++; else if (/Skipped/) skipped[target]++; else failed[target]++
  }
  END {
    for (i = 1; i <= count; i++) {
      t = order[i]
      printf "  %-12s %4d passed, %d failed, %d skipped%s\n", t, passed[t], failed[t], skipped[t],
        passed[t] + failed[t] ? "" : " (target not run)"
    }
    if (!count) print "  none"
  }' "$log"
grep 'tests passed' "$log" || true
exit "$status"
