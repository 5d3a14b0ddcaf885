#!/usr/bin/env bash
# make demo: the main job on real data, in a PostgreSQL of its own with a local embedding server.
# make bench BENCH=…: a measurement in the same setting. KEEP=1 leaves the demo's servers running.
source "$(dirname "$0")/lib.sh"
source "$ROOT/tests/setup/postgres.sh"
source "$ROOT/tests/setup/build.sh"
source "$ROOT/tests/setup/model.sh"
source "$ROOT/tests/setup/session.sh"

require rust cc pip
private_postgres "${PG:-16}" release
export PG_CONFIG
use_pg_config "$PG_CONFIG"
ensure_model
build_release
install_release

say "building the local embedding server"
cargo build --release --manifest-path examples/local-embedder/Cargo.toml --target-dir "$TARGET/local-embedder"
export LOCAL_EMBEDDER=$TARGET/local-embedder/release/local-embedder

case $1 in
demo)
    say "building the demo"
    cargo build --example demo "${FEATURES[@]}"
    open_session
    cargo run --quiet --example demo "${FEATURES[@]}"
    ;;
bench)
    [[ ${2:-} != quality ]] || source "$ROOT/tests/setup/references.sh"
    open_session
    cargo bench "${FEATURES[@]}" --bench "${2:?name a bench of benches/, such as BENCH=latency}"
    ;;
esac
