#!/usr/bin/env bash
# make test: everything that CI runs, for PostgreSQL $PG (16; 15, 18 or all) or the one of $PG_CONFIG.
# Ends with cargo's own 'test result:' lines; fails at the first step that fails.
source "$(dirname "$0")/lib.sh"
source "$ROOT/tests/setup/postgres.sh"
source "$ROOT/tests/setup/build.sh"
source "$ROOT/tests/setup/cargo-pgrx.sh"
source "$ROOT/tests/setup/schema.sh"
source "$ROOT/tests/setup/session.sh"
source "$ROOT/tests/setup/model.sh"

EMBEDDER=examples/local-embedder/Cargo.toml

# What does not depend on the version of PostgreSQL.
check_sources() {
    say "rustfmt"
    cargo fmt --check
    [[ -f $EMBEDDER ]] || return 0
    cargo fmt --check --manifest-path "$EMBEDDER"
    say "local embedding server: clippy, tests"
    cargo clippy --quiet --release --all-targets --manifest-path "$EMBEDDER" --target-dir "$TARGET/local-embedder" -- -D warnings
    LOCAL_EMBEDDER_MODEL=$MODEL_DIR cargo test --release --manifest-path "$EMBEDDER" --target-dir "$TARGET/local-embedder"
    cargo build --quiet --release --manifest-path "$EMBEDDER" --target-dir "$TARGET/local-embedder"
}

# The tree that the in-server tests install their own, unoptimised library into, and whose headers
# every debug build reads: pgrx builds its bindings anew whenever the path changes.
check_code() {
    say "clippy, PostgreSQL $MAJOR"
    cargo clippy --all-targets "${FEATURES[@]}" -- -D warnings
    say "rustdoc"
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items "${FEATURES[@]}"
}

# in_any_order FILE: its blocks of connected objects, sorted. Where two do not depend on each other, their order
# in what is generated follows from line numbers, among others, and says nothing.
in_any_order() {
    awk -v RS='/[*] <begin connected objects> [*]/' '{ gsub(/\n/, "\001"); print }' "$1" | sort | tr '\001' '\n'
}

check_schema() {
    local committed generated=$TARGET/schema.sql
    committed=$(schema_file)
    say "schema: $committed against the code"
    generate_schema "$generated"
    diff -u <(in_any_order "$committed") <(in_any_order "$generated") || die "$committed is not what the code generates: run 'make schema' and commit it"
}

# In-server tests run in a PostgreSQL that pgrx starts, as the user that may.
in_server_environment() {
    export CARGO_PGRX_TEST_PGDATA=$SESSION/in-server
    export USER=${USER:-$(id -un)}
    if as_root; then
        export CARGO_PGRX_TEST_RUNAS=$SERVER_USER
        export PATH=$ROOT/tests/setup/as-root:$PATH
        install -d -o "$SERVER_USER" "$CARGO_PGRX_TEST_PGDATA"
    else
        mkdir -p "$CARGO_PGRX_TEST_PGDATA"
    fi
}

# The newer PostgreSQL that a test upgrades to: sets NEWER_PG_CONFIG.
ensure_newer() {
    local own=$PG_CONFIG
    private_postgres 18 debug
    use_pg_config "$PG_CONFIG"
    say "building recsync for PostgreSQL $MAJOR, to which a test upgrades"
    cargo build --quiet --lib "${FEATURES[@]}"
    install_release debug
    export NEWER_PG_CONFIG=$PG_CONFIG
    PG_CONFIG=$own
    use_pg_config "$PG_CONFIG"
}

# The release build ends in a link of minutes that keeps one processor busy: it goes on beside what needs no library.
# In a process group of its own, by which lib.sh ends all of it when something else has failed.
begin_release() {
    set -m
    build_release >"$TARGET/release.log" 2>&1 </dev/null &
    BACKGROUND=$!
    set +m
}

end_release() {
    say "waiting for the release build"
    wait "$BACKGROUND" || { cat "$TARGET/release.log" >&2 && die "the release build failed"; }
    BACKGROUND=
}

test_version() {
    local in_server_tests=(--no-default-features --features "pg$1 pg_test") release_config skipped=()

    private_postgres "$1" release
    release_config=$PG_CONFIG
    use_pg_config "$PG_CONFIG"
    begin_release

    private_postgres "$1" debug
    use_pg_config "$PG_CONFIG"
    check_code

    # Of two majors there is always one pair at hand.
    if [[ $1 == 16 && -z $PG_CONFIG_GIVEN ]]; then
        ensure_newer
    else
        skipped=(--skip moving::pg_upgrade)
    fi

    private_postgres "$1" debug
    use_pg_config "$PG_CONFIG"
    say "pure and in-server tests, PostgreSQL $MAJOR"
    (
        in_server_environment
        cargo test --lib "${in_server_tests[@]}"
    )

    # After the in-server tests, which in a PG_CONFIG of the user's left their library.
    use_pg_config "$release_config"
    end_release
    check_schema
    install_release
    private_postgres "$1" debug
    use_pg_config "$PG_CONFIG"
    say "the demo, which checks what it shows, with a real model, PostgreSQL $MAJOR"
    LOCAL_EMBEDDER=$TARGET/local-embedder/release/local-embedder PG_CONFIG=$release_config \
        cargo run --quiet --example demo "${in_server_tests[@]}"
    say "tests from outside, PostgreSQL $MAJOR"
    # They wait for servers a good part of their time.
    RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) * 3 / 2))} PG_CONFIG=$release_config cargo test --no-fail-fast --test '*' "${in_server_tests[@]}" -- "${skipped[@]}"
}

if [[ -n $PG_CONFIG_GIVEN ]]; then
    use_pg_config "$PG_CONFIG_GIVEN"
    versions=("$MAJOR")
else
    case ${PG:-16} in
    all) versions=(15 16 18) ;;
    *) versions=("${PG:-16}") ;;
    esac
fi

require rust rust-lints cc pip
ensure_model
check_sources
ensure_libclang
ensure_cargo_pgrx
open_session
for version in "${versions[@]}"; do
    test_version "$version"
done
