# Sourced by what starts PostgreSQL: gives it a folder for its data, as TMPDIR, and at the end, also
# after an interrupt, stops what still runs there and removes it. With KEEP set, it leaves both.
# shellcheck shell=bash

open_session() {
    local base=${TMPDIR:-/tmp}
    # Root's TMPDIR is often closed to others, and the path of a socket must stay short.
    if as_root || [[ ${#base} -gt 40 ]]; then base=/tmp; fi
    SESSION=$(mktemp -d "$base/recsync.XXXXXX")
    if as_root; then chown "$SERVER_USER" "$SESSION"; fi
    chmod 755 "$SESSION"
    export TMPDIR=$SESSION
}

# Servers of this session, by the data folder that each names in its postmaster.pid.
session_servers() {
    local file pid
    find "$SESSION" -name postmaster.pid 2>/dev/null | while read -r file; do
        pid=$(head -n 1 "$file" 2>/dev/null || true)
        [[ $pid =~ ^[0-9]+$ && $(readlink "/proc/$pid/cwd") == "$SESSION"/* ]] && echo "$pid"
    done || true
}

# Called at the script's end, by lib.sh.
close_session() {
    local pids
    [[ -n ${SESSION:-} && -z ${KEEP:-} ]] || return 0
    pids=$(session_servers)
    if [[ -n $pids ]]; then
        # SIGQUIT: immediate shutdown; the data is thrown away anyway.
        # shellcheck disable=SC2086
        kill -QUIT $pids 2>/dev/null || true
        for _ in {1..50}; do
            [[ -z $(session_servers) ]] && break
            sleep 0.1
        done
    fi
    rm -rf "$SESSION"
}
