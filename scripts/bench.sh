#!/usr/bin/env bash
# Builds and runs the benchmarks; arguments go to Google Benchmark, as in
#   scripts/bench.sh --benchmark_filter='forward.*/f32/2048x32000/threads:1'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh --test
cmake --preset release -DXENT_BUILD_BENCH=ON
cmake --build --preset release --target xent_bench
exec build/release/bench/xent_bench "$@"
