#!/usr/bin/env bash
# Installs what a build needs, and nothing else: Debian packages that are missing, and Highway's release tarball.
# usage: setup.sh [--test] [--bench] [--cross]
#   (none)   compiler, CMake, Ninja, CLI11, Highway: library, command line and demo
#   --test   also what the tests and benchmarks need
#   --bench  the same, and the peers that xent_bench compares with
#   --cross  also an AArch64 compiler, qemu and arm64 libraries; this adds arm64 to dpkg's architectures
# Runs as root, as a user with sudo, or, where nothing is missing, as anybody.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

packages=(g++ cmake ninja-build libcli11-dev)
test_packages=(libgtest-dev libmpfr-dev libbenchmark-dev pkg-config binutils)
cross=false
for argument in "$@"; do
  case $argument in
    --test) packages+=("${test_packages[@]}") ;;
    --bench) packages+=("${test_packages[@]}" libsleef-dev libdnnl-dev python3-venv) ;;
    --cross)
      cross=true
      packages+=(g++-aarch64-linux-gnu qemu-user-static libgtest-dev:arm64 libgomp1:arm64 libmpfr-dev:arm64)
      ;;
    *)
      echo "usage: setup.sh [--test] [--bench] [--cross]" >&2
      exit 2
      ;;
  esac
done

architecture=$(dpkg --print-architecture 2>/dev/null || true)

# A package counts as there when dpkg has it, or when what it brings was installed in another way.
is_there() {
  # One of a foreign architecture must not stand in for the machine's own, nor the other way round.
  local wanted=$architecture
  case $1 in *:*) wanted=${1#*:} ;; esac
  dpkg-query --show --showformat '${Architecture} ${db:Status-Status}\n' "${1%:*}" 2>/dev/null |
    grep -qxE "($wanted|all) installed" && return
  case $1 in
    g++ | cmake) command -v "$1" >/dev/null ;;
    ninja-build) command -v ninja >/dev/null ;;
    pkg-config) command -v pkg-config >/dev/null ;;
    binutils) command -v nm >/dev/null ;;
    *) return 1 ;;
  esac
}
find_missing() {
  missing=()
  local package
  for package in "${packages[@]}"; do
    is_there "$package" || missing+=("$package")
  done
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}
install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@" </dev/null
}
# Installs what is left in `missing`. One package that does not exist must not keep the others away.
install_missing() {
  as_root apt-get -qq update || echo "setup.sh: apt-get update failed, going on with the lists as they are" >&2
  install "${missing[@]}" && return
  local package
  for package in "${missing[@]}"; do
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

# Debian's mirror has the tarball; elsewhere CMake downloads the same bytes from upstream, for which it needs to know
# the certificate authorities.
if ! "$root/scripts/highway-source.sh" "$root/.cache/highway"; then
  echo "setup.sh: Highway's tarball did not come from a Debian mirror; CMake will download it from github.com"
  packages=(ca-certificates)
  find_missing
  if [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null; then
    install_missing || true
    find_missing
    [ ${#missing[@]} -eq 0 ] || echo "setup.sh: could not be installed: ${missing[*]}" >&2
  fi
fi
