# Sourced: a Python with the libraries beside which the quality of lists is measured, in the cache. Sets REFERENCE_PYTHON.
# shellcheck shell=bash

[[ -n ${DATA:-} ]] || die "DATA=… names the folder of ml-latest-small (https://grouplens.org/datasets/movielens/)"
DATA=$(cd "$DATA" && pwd -P)
export DATA

REFERENCES=$CACHE/references-$(sha256sum "$ROOT/benches/quality/requirements.txt" | cut -c 1-12)
export REFERENCE_PYTHON=$REFERENCES/bin/python
if [[ ! -d $REFERENCES ]]; then
    require pip
    say "installing the reference implementations"
    # Where it stays, since its scripts hold its path; it is only there once everything is in it.
    python3 -m venv "$REFERENCES.new" && "$REFERENCES.new/bin/pip" install --quiet --disable-pip-version-check \
        --only-binary=:all: --requirement "$ROOT/benches/quality/requirements.txt" ||
        die "pip could not install benches/quality/requirements.txt"
    into_place "$REFERENCES.new" "$REFERENCES"
fi
