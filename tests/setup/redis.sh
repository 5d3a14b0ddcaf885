#!/usr/bin/env bash
# Prints the path of a redis-server, beside which its libraries are where they came along, and on a second line the folder of what
# examples/redis needs of Python; nothing at all where one is not to be had. On Debian the server is downloaded into the cache by
# apt-get (1 MB), which checks it, and needs no root. Python's part comes by pip.
source "$(dirname "$0")/lib.sh"

# The server is in redis-tools, under another name; the others are those of its libraries that a system may be without.
PACKAGES=(redis-tools libatomic1 libjemalloc2 liblzf1)
CLIENTS=(psycopg==3.3.9 psycopg-binary==3.3.9 redis==8.1.0 typing_extensions==4.16.0)

server=$(command -v redis-server || true)
if [[ -z $server ]]; then
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || exit 0
    home=$CACHE/redis
    if [[ ! -d $home ]]; then
        scratch_in_cache
        say "downloading ${PACKAGES[*]}" >&2
        (cd "$SCRATCH" && apt-get download "${PACKAGES[@]}" >&2) || exit 0
        for package in "$SCRATCH"/*.deb; do dpkg -x "$package" "$SCRATCH/unpacked"; done
        mkdir "$SCRATCH/redis"
        cp "$SCRATCH/unpacked/usr/bin/redis-check-rdb" "$SCRATCH/redis/redis-server"
        find "$SCRATCH/unpacked/usr/lib" -name '*.so.*' -exec cp -P {} "$SCRATCH/redis/" \;
        into_place "$SCRATCH/redis" "$home"
    fi
    server=$home/redis-server
fi

# Compiled for one version of Python.
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 0
clients=$CACHE/redis-clients-$(printf '%s\n' "$python" "${CLIENTS[@]}" | sha256sum | cut -c 1-12)
if [[ ! -d $clients ]]; then
    [[ -z $SCRATCH ]] || rm -rf "$SCRATCH"
    scratch_in_cache
    say "downloading ${CLIENTS[*]}" >&2
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary=:all: \
        --target "$SCRATCH/clients" "${CLIENTS[@]}" >&2 || exit 0
    into_place "$SCRATCH/clients" "$clients"
fi
printf '%s\n' "$server" "$clients"
