#!/bin/sh
# Installs the provider, and the command `pvrdma` if it was built, and makes the provider that of the machine.
# `--undo` takes all of it back. README.md, cmake/CMakeLists.txt and the RPM use this file; the .deb, which can have
# rdma-core's own file stepped aside, does not.
#
#     PREFIX/lib/pvrdma/libvmw_pvrdma.so                 the provider, one file for all releases of libibverbs
#     PREFIX/lib/pvrdma/libvmw_pvrdma-rdmav<N>.so        links to it: libibverbs appends the number of its private ABI
#     PREFIX/lib/pvrdma/libpvrdma_standin.so             for `pvrdma run`
#     PREFIX/bin/pvrdma
#     PREFIX/share/...                                   its manual pages and its completion, which it prints itself
#     PREFIX/lib/systemd/system/pvrdma-serve.service     starts nothing until it is configured
#     PREFIX/lib/libpvrdmadv.so.1 and others             direct verbs: see pvrdmadv.sh
#     SYSCONFDIR/libibverbs.d/vmw_pvrdma.driver          one line: driver PREFIX/lib/pvrdma/libvmw_pvrdma
#
# The last one is rdma-core's file for this device. Its line is replaced, not joined by another: of two lines libibverbs
# takes the one that the folder happens to give it first. What it was is kept beside the provider, for --undo.
set -eu

usage() {
    cat <<'END'
usage: install.sh [OPTIONS]

  --undo             remove what was installed; rdma-core's provider serves again
  --prefix DIR       where to install, /usr/local
  --sysconfdir DIR   where libibverbs has its configuration, /etc
  --root DIR         a folder in place of /, for packagers
  --from DIR         the folder with the built files; found by itself in a release and in a source tree
  --provider-only    leave out `pvrdma`
  --line-only        the driver line only: the files are there, by a package
  --files-only       all but the driver line
  --pages-only       manual pages and completion of `pvrdma` only
END
}

prefix=/usr/local
sysconfdir=/etc
root=
from=
undo=
what=all
while [ $# -gt 0 ]; do
    case $1 in
    --undo) undo=1 ;;
    --provider-only) what=provider ;;
    --line-only) what=line ;;
    --files-only) what=files ;;
    --pages-only) what=pages ;;
    --prefix | --sysconfdir | --root | --from)
        [ $# -gt 1 ] || { echo "install.sh: $1 wants a folder" >&2; exit 2; }
        case $1 in
        --prefix) prefix=$2 ;;
        --sysconfdir) sysconfdir=$2 ;;
        --root) root=$2 ;;
        --from) from=$2 ;;
        esac
        shift ;;
    -h | --help) usage; exit ;;
    *) usage >&2; exit 2 ;;
    esac
    shift
done
for folder in "$prefix" "$sysconfdir"; do
    case $folder in
    /*) ;;
    *) echo "install.sh: $folder is not an absolute path" >&2; exit 2 ;;
    esac
    # In a driver line a blank ends the name, and a colon in IBV_DRIVERS.
    case $folder in
    *[[:space:]]*) echo "install.sh: a folder with a blank in its name has no driver line: $folder" >&2; exit 2 ;;
    esac
done

lib=$prefix/lib/pvrdma
line="driver $lib/libvmw_pvrdma"
config=$root$sysconfdir/libibverbs.d/vmw_pvrdma.driver
# Neither of these two lies in libibverbs.d: libibverbs reads every file in there, whatever its name.
before=$root$lib/vmw_pvrdma.driver.before
new=$root$sysconfdir/vmw_pvrdma.driver.new
abis="25 33 34 57 59 64 65"

is_ours() {
    [ -f "$config" ] && grep -qxF "$line" "$config"
}

# What `pvrdma` prints for other programs: where they look for it below PREFIX, and the words it is asked by.
pages() {
    cat <<'END'
share/man/man1/pvrdma-run.1 man run
share/man/man1/pvrdma-serve.1 man serve
share/man/man1/pvrdma-link.1 man link
share/man/man1/pvrdma-status.1 man status
share/man/man1/pvrdma-doctor.1 man doctor
share/bash-completion/completions/pvrdma completion bash
share/zsh/site-functions/_pvrdma completion zsh
share/fish/vendor_completions.d/pvrdma.fish completion fish
END
}
unit=lib/systemd/system/pvrdma-serve.service

# Standard input becomes a file. It is put in place by renaming: a program that uses the old one keeps it.
put() { # MODE TO
    mkdir -p "$(dirname "$2")"
    cat >"$2.new"
    chmod "$1" "$2.new"
    mv -f "$2.new" "$2"
}

put_pages() { # PROGRAM
    if ! "$1" --version >/dev/null 2>&1; then
        echo "install.sh: $1 does not run on this machine: no manual pages, no completion" >&2
        return
    fi
    pages | while read -r file words; do
        # shellcheck disable=SC2086 # two words
        text=$("$1" $words)
        printf '%s\n' "$text" | put 644 "$root$prefix/$file"
    done
}

remove_pages() {
    pages | while read -r file _; do
        rm -f "$root$prefix/$file"
    done
}

line_on() {
    mkdir -p "$(dirname "$config")"
    # rpm leaves a new package's file so, beside ours.
    if [ -e "$config.rpmnew" ]; then
        mv -f "$config.rpmnew" "$before"
    elif [ -e "$config" ] && ! is_ours; then
        put 644 "$before" <"$config"
    fi
    printf '%s\n' "$line" >"$new"
    mv -f "$new" "$config"
}

line_off() {
    if is_ours; then
        if [ -e "$before" ]; then
            cp "$before" "$new"
            mv -f "$new" "$config"
        else
            rm -f "$config"
        fi
    fi
    rm -f "$before"
}

here=$(cd "$(dirname "$0")" && pwd)

# What programs are built with that use direct verbs.
direct() { # install|undo
    "$here/pvrdmadv.sh" "$1" "$root" "$prefix" lib
}

# Where the built files are: a release has two folders for them, a build has one.
find_file() { # NAME
    for folder in ${from:+"$from"} ${from:-"$here/lib/pvrdma" "$here/bin" "$here/../target/release"}; do
        if [ -f "$folder/$1" ]; then
            printf '%s\n' "$folder/$1"
            return
        fi
    done
    return 1
}

if [ -n "$undo" ]; then
    if [ "$what" = pages ]; then
        remove_pages
        exit
    fi
    [ "$what" = files ] || line_off
    if [ "$what" != line ]; then
        direct undo
        rm -f "$root$lib/libvmw_pvrdma.so" "$root$lib/libpvrdma_standin.so" "$root$prefix/bin/pvrdma" \
            "$root$prefix/$unit"
        remove_pages
        for abi in $abis; do
            rm -f "$root$lib/libvmw_pvrdma-rdmav$abi.so"
        done
        if [ -d "$root$lib" ]; then
            rmdir "$root$lib" 2>/dev/null || echo "install.sh: $root$lib is not empty, left as it is" >&2
        fi
    fi
    exit
fi

if [ "$what" != line ] && [ "$what" != pages ]; then
    provider=$(find_file libvmw_pvrdma.so) || {
        echo "install.sh: no libvmw_pvrdma.so: build it with \`cargo build --release\`, or name its folder (--from)" >&2
        exit 1
    }
    put 644 "$root$lib/libvmw_pvrdma.so" <"$provider"
    for abi in $abis; do
        ln -sfn libvmw_pvrdma.so "$root$lib/libvmw_pvrdma-rdmav$abi.so"
    done
    direct install
    if [ "$what" != provider ] && program=$(find_file pvrdma) && standin=$(find_file libpvrdma_standin.so); then
        put 644 "$root$lib/libpvrdma_standin.so" <"$standin"
        put 755 "$root$prefix/bin/pvrdma" <"$program"
        put_pages "$program"
        # A source tree has it beside this script.
        for file in "$here/$unit" "$here/pvrdma-serve.service"; do
            if [ -f "$file" ]; then
                sed "s|/usr/bin/|$prefix/bin/|" "$file" | put 644 "$root$prefix/$unit"
            fi
        done
    fi
fi
case $what in
pages)
    program=$(find_file pvrdma) || { echo "install.sh: no pvrdma" >&2; exit 1; }
    put_pages "$program" ;;
files) ;;
*) line_on ;;
esac
