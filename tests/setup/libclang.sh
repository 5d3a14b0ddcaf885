# Sourced: finds libclang, which bindgen needs to read PostgreSQL's headers, or puts it into the
# cache and exports LIBCLANG_PATH. Never overrides a LIBCLANG_PATH that is set.
# shellcheck shell=bash

LIBCLANG=libclang==18.1.1
LIBCLANG_HASHES="--hash=sha256:c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b \
--hash=sha256:54dda940a4a0491a9d1532bf071ea3ef26e6dbaf03b5000ed94dd7174e8f9592"

system_libclang() {
    local folder
    folder=$(llvm-config --libdir 2>/dev/null || true)
    { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null || true; } | grep -qE 'libclang(-[0-9.]+)?\.so' && return
    compgen -G "$folder/libclang.so*" >/dev/null || compgen -G "$folder/libclang-[0-9]*.so*" >/dev/null ||
        compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null
}

ensure_libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] && return
    system_libclang && return
    if [[ ! -d $CACHE/libclang ]]; then
        scratch_in_cache
        unpack_wheel "$SCRATCH/wheel" "$LIBCLANG $LIBCLANG_HASHES"
        mkdir "$SCRATCH/libclang"
        mv "$SCRATCH/wheel"/libclang-*.data/platlib/clang/native/libclang.so "$SCRATCH/libclang/"
        into_place "$SCRATCH/libclang" "$CACHE/libclang"
        rm -rf "$SCRATCH"
    fi
    export LIBCLANG_PATH=$CACHE/libclang
    # The wheel has no headers of its own (stddef.h); those of the C compiler do.
    BINDGEN_EXTRA_CLANG_ARGS="${BINDGEN_EXTRA_CLANG_ARGS:-} -isystem$(cc -print-file-name=include)"
    export BINDGEN_EXTRA_CLANG_ARGS
}
