#!/usr/bin/env bash
# Compiles every source of src/ for all SIMD targets, xent.h as C11 and xent.hpp as C++20 with clang; writes no code.
# usage: clang.sh FLAG...    warnings and the include directories of Highway and CLI11, as the test `clang` gives them
# Warnings are errors with clang 19, the version that the sources are checked with. Where there is no clang it ends with
# 77, which ctest counts as skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

clang=$(command -v clang++-19 || command -v clang++ || true)
if [ -z "$clang" ]; then
  echo "clang.sh: skipped: there is no clang++-19 and no clang++ (scripts/setup.sh --test)" >&2
  exit 77
fi
flags=(-fsyntax-only -Iinclude -Isrc "$@")
if [ "$("$clang" -dumpversion | cut -d . -f 1)" = 19 ]; then flags+=(-Werror); fi
"$clang" --version | sed -n 1p

# clang's <omp.h> is a package of its own.
openmp=()
if echo '#include <omp.h>' | "$clang" -fopenmp -fsyntax-only -x c++ - 2>/dev/null; then
  openmp=(-fopenmp -DXENT_HAVE_OPENMP=1)
else
  echo "clang.sh: without OpenMP (libomp-19-dev)"
fi

status=0
"$clang" "${flags[@]}" -x c -std=c11 include/xent/xent.h || status=1
"$clang" "${flags[@]}" -x c++ -std=c++20 include/xent/xent.hpp || status=1
"$clang" "${flags[@]}" "${openmp[@]}" -std=c++20 src/parallel/openmp.cc || status=1
find src -name '*.cc' ! -path src/parallel/openmp.cc | sort |
  xargs -n 1 -P "$(nproc)" "$clang" "${flags[@]}" -std=c++20 || status=1
exit $status
