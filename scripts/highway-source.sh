#!/usr/bin/env bash
# Brings Highway's release tarball from the Debian mirror that this machine's apt uses already; Debian's keyring vouches
# for it, and its bytes are upstream's. Neither root nor any change to apt's configuration is needed.
# usage: highway-source.sh DESTDIR        HWY_MIRROR names another mirror.
set -euo pipefail

version=1.2.0
suite=trixie  # the Debian release whose highway is that version
sha256=7e0be78b8318e8bdbf6fa545d2ecb4c90f947df03f7aadc42c1967f019e63343
file=highway_$version.orig.tar.gz

mkdir -p "$1"
dest=$(cd "$1" && pwd)
has_file() { echo "$sha256  $dest/$file" | sha256sum --check --status 2>/dev/null; }
has_file && exit 0

. /etc/os-release
if [ "${ID:-}" != debian ] && [ -z "${HWY_MIRROR:-}" ]; then
  echo "highway-source.sh: not a Debian system; HWY_MIRROR can name a Debian mirror" >&2
  exit 1
fi
# The mirror of the distribution itself; where no Release file tells (lists never updated), by the suite's name.
mirror=${HWY_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' \
  'Identifier: Packages' 'Origin: Debian' 'Label: Debian' 'Component: main' | head -n 1)}
if [ -z "$mirror" ]; then
  mirror=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' \
    'Identifier: Packages' 'Component: main' |
    awk -v release="$VERSION_CODENAME" '$1 == release || $1 ~ /^(old)?stable$/ {print $2; exit}')
fi
[ -n "$mirror" ] || { echo "highway-source.sh: no Debian mirror found; set HWY_MIRROR" >&2; exit 1; }

# A private apt state, so that the machine's own sources and lists stay as they are.
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
chmod 755 "$state"
mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$state/sources.list"
options=(
  -qq
  -o "Dir::Etc::sourcelist=$state/sources.list" -o Dir::Etc::sourceparts=-
  -o Dir::Etc::preferences=- -o Dir::Etc::preferencesparts=-
  -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state/cache"
  -o Acquire::Languages=none -o APT::Sandbox::User=root -o APT::Update::Error-Mode=any
)
apt-get "${options[@]}" update
cd "$state/cache"
apt-get "${options[@]}" source --download-only highway
[ -f "$file" ] || { echo "highway-source.sh: the highway of $suite is not $version: $(ls)" >&2; exit 1; }
cp "$file" "$dest/$file.part"
mv "$dest/$file.part" "$dest/$file"
has_file || { echo "highway-source.sh: $dest/$file does not have the SHA-256 $sha256" >&2; rm "$dest/$file"; exit 1; }
