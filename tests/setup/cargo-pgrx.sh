# Sourced: cargo-pgrx, which writes the install script and runs the in-server tests; `make install`
# does without it. Puts it first on PATH.
# shellcheck shell=bash

CARGO_PGRX_VERSION=0.18.1

ensure_cargo_pgrx() {
    local home=$CACHE/cargo-pgrx
    if [[ ! -x $home/bin/cargo-pgrx || $("$home/bin/cargo-pgrx" pgrx --version) != *" $CARGO_PGRX_VERSION" ]]; then
        say "building cargo-pgrx $CARGO_PGRX_VERSION (once, several minutes)"
        mkdir -p "$CACHE"
        # Built fast rather than to be fast: it runs for a second at a time.
        CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_TARGET_DIR=$TARGET/cargo-pgrx \
            cargo install --locked --quiet --force --root "$home" cargo-pgrx --version "$CARGO_PGRX_VERSION"
        rm -rf "$TARGET/cargo-pgrx"
    fi
    export PATH=$home/bin:$PATH
    export CARGO_PGRX=$home/bin/cargo-pgrx
    # It links with --no-gc-sections, in case the linker drops the SQL that the library carries, which
    # GNU ld on x86-64 does not; there it would only build every dependency a second time.
    if [[ $(uname -m) == x86_64 ]]; then export CARGO_PGRX_DISABLE_GC_SECTIONS_WORKAROUND=1; fi
}
