#!/usr/bin/env bash
# make build | install | uninstall: recsync for the PostgreSQL of $PG_CONFIG (default: the one on PATH).
source "$(dirname "$0")/lib.sh"
source "$ROOT/tests/setup/build.sh"

use_pg_config "${PG_CONFIG:-pg_config}"
case $1 in
build) build_release ;;
install)
    # As with sudo, which drops the PATH: what `make build` left is enough.
    if ! command -v cargo >/dev/null && [[ -f $TARGET/release/librecsync.so &&
        $(cat "$TARGET/release/librecsync.major" 2>/dev/null) == "$MAJOR" ]]; then
        say "cargo is not on PATH: taking the library that 'make build' left"
    else
        build_release
    fi
    install_release
    ;;
uninstall) uninstall_release ;;
esac
