# Sourced: the release build of the extension and putting it into a PostgreSQL. Never overwrites a
# file: a running server has the old library mapped and would crash, so each is put in place by rename.
# shellcheck shell=bash
source "$ROOT/tests/setup/libclang.sh"

# use_pg_config PG_CONFIG: sets MAJOR, FEATURES (cargo's options) and what pgrx's build reads.
use_pg_config() {
    local version
    command -v "$1" >/dev/null || die "no such program: PG_CONFIG=$1"
    version=$("$1" --version)
    MAJOR=$(sed -E 's/^PostgreSQL ([0-9]+).*/\1/' <<<"$version")
    case $MAJOR in
    15 | 16 | 17 | 18) ;;
    *) die "recsync supports PostgreSQL 15 to 18; $1 belongs to: $version" ;;
    esac
    [[ -d $("$1" --includedir-server) ]] ||
        die "no server headers in $("$1" --includedir-server): $(package_command \
            "postgresql-server-dev-$MAJOR" postgresql-server-devel)"
    FEATURES=(--no-default-features --features "pg$MAJOR")
    PGRX_PG_CONFIG_PATH=$(command -v "$1")
    export PGRX_PG_CONFIG_PATH
    # Keeps pgrx out of the home directory. The file is empty, but must be there: pgrx's build
    # watches it, and cargo builds anew whenever a watched file is missing.
    export PGRX_HOME=$TARGET/pgrx-home
    mkdir -p "$PGRX_HOME"
    [[ -e $PGRX_HOME/config.toml ]] || echo '[configs]' >"$PGRX_HOME/config.toml"
}

# build_release: target/release/librecsync.so for the PostgreSQL in use.
build_release() {
    require rust cc
    ensure_libclang
    say "building recsync for PostgreSQL $MAJOR"
    cargo build --release --lib "${FEATURES[@]}"
    echo "$MAJOR" >"$TARGET/release/librecsync.major"
}

# place MODE SOURCE DESTINATION
place() {
    mkdir -p "$(dirname "$3")"
    install -m "$1" "$2" "$3.new$$"
    mv -f "$3.new$$" "$3"
}

# install_release [debug]: copies library, control file and SQL; honours DESTDIR.
install_release() {
    local library extension sql profile=${1:-release}
    library=${DESTDIR:-}$("$PGRX_PG_CONFIG_PATH" --pkglibdir)/recsync.so
    extension=${DESTDIR:-}$("$PGRX_PG_CONFIG_PATH" --sharedir)/extension
    say "installing into $(dirname "$library") and $extension"
    for sql in sql/recsync--*.sql; do
        place 644 "$sql" "$extension/$(basename "$sql")"
    done
    place 755 "$TARGET/$profile/librecsync.so" "$library"
    # Last: from here on CREATE EXTENSION sees the new version.
    place 644 recsync.control "$extension/recsync.control"
}

uninstall_release() {
    local library extension
    library=${DESTDIR:-}$("$PGRX_PG_CONFIG_PATH" --pkglibdir)/recsync.so
    extension=${DESTDIR:-}$("$PGRX_PG_CONFIG_PATH" --sharedir)/extension
    say "removing recsync from $(dirname "$library") and $extension"
    rm -f "$extension/recsync.control" "$extension"/recsync--*.sql "$library"
}
