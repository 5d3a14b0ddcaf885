#!/usr/bin/env bash
# Prints the path of Prometheus' promtool, and nothing else; nothing at all where it is not to be had. On Debian it is
# downloaded into the cache by apt-get (19 MB), which checks it, and needs no root.
source "$(dirname "$0")/lib.sh"

if command -v promtool; then
    exit
fi
command -v apt-get >/dev/null && command -v dpkg >/dev/null || exit 0
home=$CACHE/promtool
if [[ ! -d $home ]]; then
    scratch_in_cache
    say "downloading promtool" >&2
    (cd "$SCRATCH" && apt-get download prometheus >&2 && dpkg -x prometheus_*.deb "$SCRATCH/prometheus") || exit 0
    mkdir "$SCRATCH/promtool"
    cp "$SCRATCH/prometheus/usr/bin/promtool" "$SCRATCH/promtool/"
    into_place "$SCRATCH/promtool" "$home"
fi
echo "$home/promtool"
