#!/usr/bin/env bash
# make schema: writes sql/recsync--VERSION.sql from the code. Sourced by test.sh for generate_schema.
if [[ -z ${ROOT:-} ]]; then
    source "$(dirname "$0")/lib.sh"
    source "$ROOT/tests/setup/postgres.sh"
    source "$ROOT/tests/setup/build.sh"
    source "$ROOT/tests/setup/cargo-pgrx.sh"
fi

# schema_file: the install script's path, from the control file's version.
schema_file() {
    local version
    version=$(sed -nE "s/^default_version *= *'([^']+)'.*/\1/p" recsync.control)
    [[ -n $version ]] || die "recsync.control names no default_version"
    echo "sql/recsync--$version.sql"
}

# generate_schema FILE: the SQL that target/release/librecsync.so carries in itself. Left out are
# file names with line numbers, which would change with every edit of the code.
generate_schema() {
    local raw=$TARGET/schema.raw.sql
    cargo pgrx schema --release --skip-build "pg$MAJOR" "${FEATURES[@]}" --out "$raw" >"$TARGET/schema.log" 2>&1 ||
        { cat "$TARGET/schema.log" >&2 && die "cargo pgrx schema failed"; }
    {
        echo "-- Generated from the code by 'make schema'; 'make test' fails when it is not what the code generates."
        sed -E '/^-- [A-Za-z0-9_.\/-]+\.rs:[0-9]+$/d' "$raw"
    } >"$1"
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    require rust cc
    private_postgres "${PG:-16}" release
    use_pg_config "$PG_CONFIG"
    ensure_cargo_pgrx
    build_release
    generate_schema "$(schema_file)"
    say "wrote $(schema_file)"
fi
