#!/usr/bin/env bash
# Installs the Python package in a virtual environment under build/, and runs its tests.
# usage: python.sh [--numpy]
#   (none)   with PyTorch 2.13, which takes some 700 MB
#   --numpy  with NumPy alone: the tests of xent.torch are skipped
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

environment=build/venv
case ${1:-} in
  "") ;;
  --numpy) environment=build/venv-numpy ;;
  *)
    echo "usage: python.sh [--numpy]" >&2
    exit 2
    ;;
esac

scripts/setup.sh --test
[ -x $environment/bin/pip ] || python3 -m venv $environment
if [ $environment = build/venv ]; then $environment/bin/pip install --quiet torch==2.13.0; fi
$environment/bin/pip install --quiet '.[test]'
$environment/bin/python -m pytest -q -rs
