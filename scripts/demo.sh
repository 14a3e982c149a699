#!/usr/bin/env bash
# From a fresh clone to the demo: installs what is missing, builds the library and the example, trains on the digits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
options=(-DXENT_BUILD_TESTS=OFF -DXENT_BUILD_BENCH=OFF)
# Warnings are errors with the compiler that they are checked with; another may know new ones.
case $("${CXX:-c++}" -dumpversion) in 12*) ;; *) options+=(-DXENT_WERROR=OFF) ;; esac
cmake --preset release "${options[@]}"
cmake --build --preset release
echo
exec build/release/examples/train_digits examples/data "$@"
