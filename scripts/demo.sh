#!/usr/bin/env bash
# From a fresh clone to the demo: installs what is missing, builds the library and the example, trains on the digits.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
cmake --preset release
cmake --build --preset release
echo
exec build/release/examples/train_digits examples/data "$@"
