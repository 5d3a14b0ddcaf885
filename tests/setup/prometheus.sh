#!/usr/bin/env bash
# Prometheus' own parser of OpenMetrics, in the cache, for the tests. Prints the folder to put on PYTHONPATH, and nothing else.
source "$(dirname "$0")/lib.sh"

PROMETHEUS_CLIENT=prometheus-client==0.26.0
PROMETHEUS_CLIENT_HASHES=--hash=sha256:fa93d06737aa02bacd05794768508bb97d2fbee28cb3bca04eaae92f0ca953d6

home=$CACHE/prometheus-client-0.26.0
if [[ ! -d $home ]]; then
    scratch_in_cache
    unpack_wheel "$SCRATCH/wheel" "$PROMETHEUS_CLIENT $PROMETHEUS_CLIENT_HASHES" >&2
    into_place "$SCRATCH/wheel" "$home"
fi
echo "$home"
