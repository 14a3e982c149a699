#!/usr/bin/env bash
# Runs clang-tidy 19 with the checks of .clang-tidy over include/ and the layers of src/ without SIMD.
# usage: tidy.sh [-p BUILD] [FILE...]    BUILD is a configured build, build/release by default; FILEs stand in for all
# Where there is no clang-tidy-19 (scripts/setup.sh --clang) it ends with 77, which ctest counts as skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build/release
if [ "${1:-}" = -p ]; then
  build=$2
  shift 2
fi
if ! command -v clang-tidy-19 >/dev/null; then
  echo "tidy.sh: skipped: there is no clang-tidy-19 (scripts/setup.sh --clang)" >&2
  exit 77
fi
[ -f "$build/compile_commands.json" ] || cmake --preset release -B "$build"
[ $# -gt 0 ] || set -- include/xent/xent.h include/xent/xent.hpp src/{api,rows,parallel,dispatch,cli}/*.cc
# clang-tidy gives a header the flags of the source whose name is nearest to its own.
printf '%s\n' "$@" | xargs -n 1 -P "$(nproc)" clang-tidy-19 -p "$build" --quiet 2> >(grep -v 'warnings generated' >&2)
echo "tidy.sh: nothing found"
