#!/usr/bin/env bash
# Builds the benchmarks, measures every goal and its peers, and writes docs/performance.md and its plots.
# usage: bench.sh [--quick] [--no-peers] [--matrix]   raw results go to build/bench-results/; an hour on an idle machine
#          --quick     2 repetitions, to see that everything works
#          --no-peers  without PyTorch and the others (a gigabyte of Python packages in build/peers-venv)
#          --matrix    the whole matrix of peers: all shapes, bfloat16, all threads; hours
#        bench.sh ARGUMENT...              xent_bench alone, with these arguments, as in
#          bench.sh --data=masked --benchmark_filter='^forward.*/f32/2048x32000/threads:1$'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bench=build/release/bench/xent_bench
results=build/bench-results
venv=build/peers-venv
repetitions=9
quick=()
matrix=(--quick)
peers=true
alone=false
for argument in "$@"; do
  case $argument in
    --quick) quick=(--quick) repetitions=2 ;;
    --no-peers) peers=false ;;
    --matrix) matrix=() ;;
    *) alone=true ;;
  esac
done

packages=--test
$alone || packages=--bench
scripts/setup.sh "$packages"
cmake --preset release -DXENT_BUILD_BENCH=ON
targets=(xent_bench)
if ! $alone && cmake --build --preset release --target help | grep -q '^xent_memory:'; then targets+=(xent_memory); fi
cmake --build --preset release --target "${targets[@]}"
if $alone; then exec "$bench" "$@"; fi

rm -rf "$results"
mkdir -p "$results"
failed=()

# The filter's alternatives are the arguments after the name of the result and of the data.
measure() {
  local name=$1 data=$2 filter
  shift 2
  filter=$(IFS='|' && echo "$*")
  echo "bench.sh: $name, $(date +%H:%M:%S)"
  "$bench" --data="$data" --benchmark_filter="^($filter)\$" --benchmark_repetitions="$repetitions" \
    --benchmark_min_time=0.05 --benchmark_out="$results/$name.json" --benchmark_out_format=json || failed+=("$name")
}

loss='(forward|forward_backward|forward_backward_inplace|forward_backward_workspace)'
yardsticks='(read_sweep|copy|in_place_scale)'
any='threads:[0-9]+'
in_cache='(1x4096|1x32000)/threads:1'
real='(2048x30522|1024x50257|512x128256|512x151936|256x262144)'
class_major='[0-9]+x[0-9]+x[0-9]+'
options='(kl|jensen_shannon|bce|forward_[a-z_]+)(_forward)?(_backward)?'
small='(65536x(2|4|10|16|64|100)|8192x1000)'

half="$loss/(bf16|f16)/4096x32000/$any"

measure normal normal \
  "($loss|$yardsticks)/f32/2048x32000/$any" \
  "$half" \
  "$loss/f64/2048x32000/$any" \
  "$loss/(f32|bf16|f16|f64)/$in_cache" \
  "$loss/f32/$real/threads:1" \
  "$loss/f32/$small/threads:1" \
  "(forward|forward_backward_inplace)/f32/(1x262144|1x128256|8x128256|1x10)/$any" \
  "(softmax|log_softmax|logsumexp|backward)/f32/2048x32000/threads:1" \
  '(contrib_|sleef_)?exp_sum/.*' \
  'onednn_.*/f32/2048x32000/.*' \
  "$options/f32/(2048x32000|65536x10|8x19x65536)/threads:1" \
  "(forward|forward_backward|softmax|log_softmax|logsumexp|backward)/f32/$class_major/threads:1" \
  'bce_.*/1000000x1/threads:1'
for data in margin ascending masked; do
  measure "$data" "$data" "$loss/f32/2048x32000/$any" "$half" "$loss/(f32|bf16|f16)/$in_cache"
  XENT_MAX_TARGET=AVX2 measure "avx2_$data" "$data" "$loss/f32/2048x32000/$any" "$loss/f32/$in_cache"
done
XENT_MAX_TARGET=AVX2 measure avx2 normal \
  "$loss/f32/2048x32000/$any" \
  "$loss/f32/$in_cache" \
  "(forward|forward_backward_workspace)/f32/($real|$small)/threads:1" \
  '(contrib_|sleef_)?exp_sum/.*'

if [ -x build/release/bench/xent_memory ]; then
  echo "bench.sh: memory, $(date +%H:%M:%S)"
  build/release/bench/xent_memory >"$results/memory.json" || failed+=(memory)
fi

if $peers; then
  if ! cmp -s bench/peers/requirements.txt "$venv/requirements.txt"; then
    python3 -m venv "$venv" && "$venv/bin/pip" install --quiet -r bench/peers/requirements.txt &&
      cp bench/peers/requirements.txt "$venv/" || failed+=("installing the peers")
  fi
  if [ -f "$venv/requirements.txt" ]; then
    echo "bench.sh: matrix, $(date +%H:%M:%S)"
    "$venv/bin/python" bench/peers/matrix.py "${matrix[@]}" --out "$results/matrix.json" || failed+=(matrix)
    echo "bench.sh: peers, $(date +%H:%M:%S)"
    "$venv/bin/python" bench/peers/peers.py "${quick[@]}" --out "$results/peers.json" || failed+=(peers)
  fi
fi

python=$venv/bin/python
[ -x "$python" ] || python=python3
"$python" bench/report/report.py "$results" docs
if [ ${#failed[@]} -gt 0 ]; then
  echo "bench.sh: failed: ${failed[*]}" >&2
  exit 1
fi
