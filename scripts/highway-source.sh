#!/usr/bin/env bash
# Brings Highway's release tarball into DESTDIR: from the Debian mirror that this machine's apt uses already, else from
# github.com. The bytes are the same, and their SHA-256 is checked. It needs no root, and apt's configuration and lists
# stay as they are.
# usage: highway-source.sh DESTDIR        HWY_MIRROR names another Debian mirror.
set -euo pipefail

version=1.2.0
sha256=7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343
file=highway_$version.orig.tar.gz

mkdir -p "$1"
dest=$(cd "$1" && pwd)
has_file() { echo "$sha256  $dest/$file" | sha256sum --check --status 2>/dev/null; }
has_file && exit 0

helper=/usr/lib/apt/apt-helper  # knows apt's proxies
if [ ! -x $helper ]; then
  echo "highway-source.sh: there is no apt here" >&2
  exit 1
fi
download() {
  $helper -qq -o APT::Sandbox::User=root download-file "$1" "$dest/$file.part" "SHA256:$sha256"
}

urls=()
# shellcheck source=/dev/null
id=$(. /etc/os-release && echo "${ID:-} ${VERSION_CODENAME:-}")
mirror=${HWY_MIRROR:-}
if [ -z "$mirror" ] && [ "${id% *}" = debian ]; then
  # The mirror of the distribution itself; where no Release file tells (lists never updated), by the suite's name.
  # shellcheck disable=SC2016 # apt-get expands $(...) itself
  mirror=$(apt-get indextargets --format '$(REPO_URI)' \
    'Identifier: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | head -n 1)
  if [ -z "$mirror" ]; then
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' \
      'Identifier: Packages' 'Component: main' |
      awk -v release="${id#* }" '$1 == release || $1 ~ /^(old)?stable$/ {print $2; exit}')
  fi
fi
[ -z "$mirror" ] || urls+=("${mirror%/}/pool/main/h/highway/$file")
urls+=("https://github.com/google/highway/archive/refs/tags/$version.tar.gz")

for url in "${urls[@]}"; do
  if download "$url"; then
    mv "$dest/$file.part" "$dest/$file"
    exit 0
  fi
  rm -f "$dest/$file.part" "$dest/$file.part.FAILED"
done
echo "highway-source.sh: none of these has the tarball: ${urls[*]}" >&2
exit 1
