#!/usr/bin/env bash
# Installs what a build needs, and nothing else: Debian packages that are missing, and Highway's release tarball.
# usage: setup.sh [--test] [--bench] [--clang] [--tsan] [--cross]
#   (none)   compiler, CMake, Ninja, CLI11, Highway: library, command line and demo
#   --test   also what the tests and benchmarks need, a clang for the test `clang`, and clang-format of PyPI
#   --bench  --test, and the peers that xent_bench compares with
#   --clang  --test, and clang 19 with its OpenMP and clang-tidy, for the preset `clang` and scripts/tidy.sh
#   --tsan   --clang, and clang's sanitizers, for the preset `tsan`
#   --cross  --test, an AArch64 compiler, qemu and arm64 libraries; this adds arm64 to dpkg's architectures
# Runs as root, as a user with sudo, or, where nothing is missing, as anybody.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# NAME|OTHER: the first of these that the distribution has.
packages=(g++ cmake ninja-build libcli11-dev)
test_packages=(libgtest-dev libmpfr-dev libbenchmark-dev pkg-config binutils git python3-venv 'clang-19|clang')
clang_packages=("${test_packages[@]}" clang-19 libomp-19-dev clang-tidy-19)
tests=false
cross=false
for argument in "$@"; do
  tests=true
  case $argument in
    --test) packages+=("${test_packages[@]}") ;;
    --bench) packages+=("${test_packages[@]}" libsleef-dev libdnnl-dev) ;;
    --clang) packages+=("${clang_packages[@]}") ;;
    --tsan) packages+=("${clang_packages[@]}" libclang-rt-19-dev llvm-19) ;;
    --cross)
      cross=true
      packages+=("${test_packages[@]}")
      packages+=(g++-aarch64-linux-gnu qemu-user-static libgtest-dev:arm64 libgomp1:arm64 libmpfr-dev:arm64)
      ;;
    *)
      echo "usage: setup.sh [--test] [--bench] [--clang] [--tsan] [--cross]" >&2
      exit 2
      ;;
  esac
done

architecture=$(dpkg --print-architecture 2>/dev/null || true)

# A package counts as there when dpkg has it, or when what it brings was installed in another way.
is_there() {
  case $1 in
    *'|'*)
      is_there "${1%%|*}" || is_there "${1#*|}"
      return
      ;;
  esac
  # A package of a foreign architecture does not stand in for one of the machine's own, and the reverse.
  local wanted=$architecture
  case $1 in *:*) wanted=${1#*:} ;; esac
  dpkg-query --show --showformat '${Architecture} ${db:Status-Status}\n' "${1%:*}" 2>/dev/null |
    grep -qxE "($wanted|all) installed" && return
  case $1 in
    g++ | cmake | git | pkg-config) command -v "$1" >/dev/null ;;
    ninja-build) command -v ninja >/dev/null ;;
    binutils) command -v nm >/dev/null ;;
    python3-venv) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    clang) command -v clang++ >/dev/null ;;
    clang-*) command -v "clang++-${1#clang-}" >/dev/null ;;
    *) return 1 ;;
  esac
}
find_missing() {
  missing=()
  local package
  for package in "${packages[@]}"; do
    case " ${missing[*]-} " in *" $package "*) continue ;; esac
    is_there "$package" || missing+=("$package")
  done
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}
install() {
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@" </dev/null
}
# Installs the packages in `missing`. One package that does not exist must not keep the others away.
install_missing() {
  as_root apt-get -qq update || echo "setup.sh: apt-get update failed, going on with the lists as they are" >&2
  local package names=()
  for package in "${missing[@]}"; do
    while [[ $package == *'|'* ]] && ! apt-cache show "${package%%|*}" >/dev/null 2>&1; do package=${package#*|}; done
    names+=("${package%%|*}")
  done
  install "${names[@]}" && return
  for package in "${names[@]}"; do
    install "$package" || true
  done
}

find_missing
if [ ${#missing[@]} -gt 0 ]; then
  echo "setup.sh: missing: ${missing[*]}"
  if ! command -v apt-get >/dev/null; then
    echo "setup.sh: there is no apt-get here; please install them in this system's own way" >&2
    exit 1
  fi
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
    echo "setup.sh: neither root nor sudo; please have them installed: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  if $cross && ! dpkg --print-foreign-architectures | grep -qx arm64; then
    as_root dpkg --add-architecture arm64
  fi
  install_missing
  find_missing
  if [ ${#missing[@]} -gt 0 ]; then
    echo "setup.sh: could not be installed: ${missing[*]}" >&2
    exit 1
  fi
fi

# Highway: from a Debian mirror, else from github.com, for which apt needs to know the certificate authorities.
bring_highway() { "$root/scripts/highway-source.sh" "$root/.cache/highway"; }
if ! bring_highway; then
  packages=(ca-certificates)
  find_missing
  if [ ${#missing[@]} -eq 0 ] || ! command -v apt-get >/dev/null || ! install_missing || ! bring_highway; then
    echo "setup.sh: Highway's tarball is not there; CMake will try to download it from github.com" >&2
  fi
fi
if $tests && ! "$root/scripts/format.sh" --install; then
  echo "setup.sh: clang-format is not there; the test \`format\` will be skipped" >&2
fi
