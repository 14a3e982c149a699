#!/usr/bin/env bash
# Times the library of one checkout against that of another, call by call in one process, and compares their bits.
# usage: compare.sh OLD_CHECKOUT [NEW_CHECKOUT] [-- OPTION...]   NEW_CHECKOUT: this one by default
#   The options are those of xent_compare (bench/README.md). Three minutes on an idle machine.
#   Exit status: 0; 1 where a median is beyond the limit or bits differ; 2 where something did not run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

checkouts=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  checkout=$(cd "$1" && pwd) || exit 2
  checkouts+=("$checkout")
  shift
done
[ $# -eq 0 ] || shift
if [ ${#checkouts[@]} -lt 1 ] || [ ${#checkouts[@]} -gt 2 ]; then
  sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
old=${checkouts[0]}
new=${checkouts[1]:-$here}
output=$here/build/compare
mkdir -p "$output"

# The library of a checkout, built as its own release preset builds it.
build_library() {
  (cd "$1" && { [ -f build/release/build.ninja ] || cmake --preset release; } &&
    cmake --build --preset release --target xent)
}

# The subject that fits the header of the checkout $1, as the module $2.
build_subject() {
  local source=subject.cc
  grep -q xent_matrix "$1/include/xent/xent.h" || source=subject_before.cc
  "${CXX:-c++}" -std=c++20 -O2 -shared -fPIC -fvisibility=hidden -I"$1/include" -I"$here" \
    "$here/bench/compare/$source" -o "$2" -ldl
}

build_all() {
  build_library "$old" && build_library "$new" &&
    build_subject "$old" "$output/old.so" && build_subject "$new" "$output/new.so" &&
    cmake --preset release -DXENT_BUILD_BENCH=ON && cmake --build --preset release --target xent_compare
}

cd "$here"
if ! build_all >"$output/build.log" 2>&1; then
  tail -n 20 "$output/build.log" >&2
  exit 2
fi
exec build/release/bench/xent_compare "$@" "$output/old.so" "$old/build/release/lib/libxent.so" \
  "$output/new.so" "$new/build/release/lib/libxent.so"
