#!/usr/bin/env bash
# Formats the C and C++ sources with the pinned clang-format, or checks them and the length of every source's lines.
# usage: format.sh [--check | --install]
#   (none)     formats every C and C++ file that git knows or does not ignore
#   --check    changes nothing; fails where clang-format would, or where a line has more than 120 columns
#   --install  only brings clang-format from PyPI into .cache/clang-format (needs python3 with venv)
# Ends with 77, which ctest counts as skipped, where there is no git checkout or clang-format cannot be installed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=19.1.7
columns=120
venv=.cache/clang-format
format=$venv/bin/clang-format

has_format() { [ -x $format ] && $format --version 2>/dev/null | grep -qF "version $version"; }
install_format() {
  has_format && return
  echo "format.sh: installing clang-format $version into $venv"
  rm -rf $venv
  python3 -m venv $venv &&
    $venv/bin/pip install --quiet --retries 1 --disable-pip-version-check "clang-format==$version" &&
    has_format
}
skip() {
  echo "format.sh: skipped: $1" >&2
  exit 77
}

# The list of files that match the patterns, with a null byte after each.
list() {
  local file
  git -c safe.directory="$PWD" ls-files -z --cached --others --exclude-standard -- "$@" |
    while IFS= read -r -d '' file; do [ ! -f "$file" ] || printf '%s\0' "$file"; done
}
cxx=('*.c' '*.cc' '*.cpp' '*.h' '*.hpp')
others=('*.py' '*.sh' '*.cmake' '*.cmake.in' '*CMakeLists.txt' '*.json' '*.yml' '.ci/run' '.clang-*' '.editorconfig')

case ${1:-} in
  "" | --check) ;;
  --install)
    install_format
    exit
    ;;
  *)
    echo "usage: format.sh [--check | --install]" >&2
    exit 2
    ;;
esac

git -c safe.directory="$PWD" rev-parse --is-inside-work-tree >/dev/null || skip "this is no git checkout"
status=0
if [ "${1:-}" = --check ]; then
  echo "Lines of more than $columns columns:"
  if list "${cxx[@]}" "${others[@]}" | LC_ALL=C.UTF-8 xargs -0 grep -nE "^.{$((columns + 1)),}\$" /dev/null; then
    status=1
  else
    echo "  none"
  fi
fi
if ! install_format; then
  [ $status = 0 ] || exit $status
  skip "clang-format $version could not be installed from PyPI"
fi
if [ "${1:-}" = --check ]; then
  echo "What clang-format would change (scripts/format.sh does):"
  if list "${cxx[@]}" | xargs -0 -n 16 -P "$(nproc)" $format --dry-run --Werror; then
    echo "  nothing"
  else
    status=1
  fi
else
  list "${cxx[@]}" | xargs -0 -n 16 -P "$(nproc)" $format -i
fi
exit $status
