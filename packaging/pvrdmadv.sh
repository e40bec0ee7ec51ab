#!/bin/sh
# Installs what programs are built with and linked to that use direct verbs; install.sh and the packages call it. The
# library is the provider itself by another name: a link, so that a process has it once.
#
#     PREFIX/LIB/libpvrdmadv.so.1                        link to PREFIX/lib/pvrdma/libvmw_pvrdma.so
#     PREFIX/LIB/libpvrdmadv.so                          for -lpvrdmadv
#     PREFIX/LIB/pkgconfig/pvrdmadv.pc
#     PREFIX/include/pvrdma.h, infiniband/pvrdmadv.h
#     PREFIX/share/man/man7/pvrdmadv.7, man3/pvrdmadv_*.3
set -eu

if [ $# -ne 4 ] || { [ "$1" != install ] && [ "$1" != undo ]; }; then
    echo "usage: pvrdmadv.sh install|undo ROOT PREFIX LIB   (LIB below PREFIX: lib, lib64, lib/x86_64-linux-gnu)" >&2
    exit 2
fi
verb=$1 top=$2$3 prefix=$3 lib=$4
here=$(cd "$(dirname "$0")" && pwd)
# In a source tree this lies in packaging/, in a release at the top.
source=$here
[ -f "$source/include/pvrdma.h" ] || source=$here/..

case $lib in
lib) target=pvrdma ;;
*/*) target=../pvrdma ;;
*) target=../lib/pvrdma ;;
esac

if [ "$verb" = undo ]; then
    rm -f "$top/$lib/libpvrdmadv.so.1" "$top/$lib/libpvrdmadv.so" "$top/$lib/pkgconfig/pvrdmadv.pc" \
        "$top/include/pvrdma.h" "$top/include/infiniband/pvrdmadv.h" \
        "$top/share/man/man7/pvrdmadv.7" "$top/share/man/man3/pvrdmadv_"*.3
else
    # A file is put in place by renaming, as install.sh does.
    put() { # TO
        mkdir -p "$(dirname "$1")"
        cat >"$1.new"
        chmod 644 "$1.new"
        mv -f "$1.new" "$1"
    }
    mkdir -p "$top/$lib/pkgconfig"
    ln -sfn "$target/libvmw_pvrdma.so" "$top/$lib/libpvrdmadv.so.1"
    ln -sfn libpvrdmadv.so.1 "$top/$lib/libpvrdmadv.so"
    put "$top/include/pvrdma.h" <"$source/include/pvrdma.h"
    put "$top/include/infiniband/pvrdmadv.h" <"$source/include/infiniband/pvrdmadv.h"
    sed "s|@PREFIX@|$prefix|; s|@LIB@|$lib|" "$here/pvrdmadv.pc" | put "$top/$lib/pkgconfig/pvrdmadv.pc"
    for page in "$source/docs/man/"*.[37]; do
        put "$top/share/man/man${page##*.}/$(basename "$page")" <"$page"
    done
fi
# The loader has a list of names; in another root the package manager or nobody sees to it.
if [ -z "$2" ] && [ "$(id -u)" = 0 ]; then
    ldconfig 2>/dev/null || :
fi
