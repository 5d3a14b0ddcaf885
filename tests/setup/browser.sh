#!/usr/bin/env bash
# Prints the path of a chromedriver for the Chromium of this machine, and nothing else; nothing at all where there is none.
# Debian's Chromium without its driver: that is downloaded into the cache by apt-get, which checks it, and needs no root.
source "$(dirname "$0")/lib.sh"

if command -v chromedriver; then
    exit
fi
command -v chromium >/dev/null && command -v apt-get >/dev/null && command -v dpkg-query >/dev/null || exit 0
# shellcheck disable=SC2016 # dpkg's own variable
version=$(dpkg-query --show --showformat='${Version}' chromium 2>/dev/null) || exit 0
home=$CACHE/chromedriver-$version
if [[ ! -d $home ]]; then
    scratch_in_cache
    say "downloading chromium-driver $version" >&2
    (cd "$SCRATCH" && apt-get download "chromium-driver=$version" >&2 && dpkg -x chromium-driver_*.deb "$SCRATCH/driver") || exit 0
    into_place "$SCRATCH/driver" "$home"
fi
echo "$home/usr/bin/chromedriver"
