#!/usr/bin/env bash
# Runs clang-tidy 19 with the checks of .clang-tidy over the headers in include/ and the layers of src/ without SIMD.
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
status=0
if [ $# -eq 0 ]; then
  set -- src/{api,rows,parallel,dispatch,cli}/*.cc
  clang-tidy-19 --quiet include/xent/xent.hpp -- -std=c++20 -Iinclude 2> >(grep -v ' generated\.$' >&2) || status=1
fi
# The build's own commands without what g++ alone knows.
commands=$build/tidy
mkdir -p "$commands"
sed 's/ -fno-gnu-unique / /' "$build/compile_commands.json" >"$commands/compile_commands.json"
printf '%s\n' "$@" |
  xargs -n 1 -P "$(nproc)" clang-tidy-19 -p "$commands" --quiet 2> >(grep -v ' generated\.$' >&2) || status=1
[ $status != 0 ] || echo "tidy.sh: nothing found"
exit $status
