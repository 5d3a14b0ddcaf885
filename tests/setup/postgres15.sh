# Sourced: PostgreSQL 15 from Debian 12's own packages, unpacked into the cache (they find their files
# from where they stand), with pgvector built from Debian 13's source package. Installs no package.
# shellcheck shell=bash

debian_postgres() {
    local home=$CACHE/postgres-15 bin=usr/lib/postgresql/15/bin lacking
    # shellcheck disable=SC2034 # for the caller
    PG_CONFIG=$home/$bin/pg_config
    [[ -d $home ]] && return
    apt-cache show postgresql-server-dev-15 >/dev/null 2>&1 ||
        die "PG=15 takes Debian 12's packages, which this machine's apt does not know (perhaps run: apt-get update):" \
            "pass PG_CONFIG=/path/to/pg_config of a PostgreSQL 15 that has pgvector"
    require cc
    scratch_in_cache
    say "unpacking Debian's PostgreSQL 15"
    mkdir "$SCRATCH/debs" "$SCRATCH/home"
    (cd "$SCRATCH/debs" && apt-get download -qq postgresql-15 postgresql-client-15 postgresql-server-dev-15)
    for package in "$SCRATCH"/debs/*.deb; do
        dpkg-deb -x "$package" "$SCRATCH/home"
    done
    lacking=$(ldd "$SCRATCH/home/$bin/postgres" "$SCRATCH/home/$bin/psql" | awk '/not found/ { print $1 }' | sort -u)
    [[ -z $lacking ]] || die "PostgreSQL 15 lacks $(xargs <<<"$lacking"): apt-get install postgresql-15"
    pgvector_source
    say "building pgvector for PostgreSQL 15"
    make -s -C "$SCRATCH/pgvector" PG_CONFIG="$SCRATCH/home/$bin/pg_config" OPTFLAGS= with_llvm=no install
    into_place "$SCRATCH/home" "$home"
    rm -rf "$SCRATCH"
}

# pgvector_source: into $SCRATCH/pgvector, by an apt of its own that knows only the next Debian's sources.
pgvector_source() {
    local apt=$SCRATCH/apt mirror options
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 !~ /security/ { print $2; exit }')
    [[ -n $mirror ]] || die "no Debian mirror among apt's sources, for pgvector's source"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$SCRATCH/pgvector"
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$apt/sources.list"
    options=(-qq -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=)
    apt-get "${options[@]}" update
    (cd "$apt" && apt-get "${options[@]}" source --download-only pgvector)
    tar -xf "$apt"/pgvector_*.orig.tar.* -C "$SCRATCH/pgvector" --strip-components=1
}
