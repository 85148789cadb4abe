# Sourced by the scripts beside it: what is built, where it lies, and how it gets there.
# shellcheck shell=bash disable=SC2034,SC2164  # its names are used by those that source it, which also set -e

BOXLITE_VERSION=0.10.8
DEBIAN_SUITE=trixie

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BULKHEAD_TEST_BOXLITE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead/boxlite}
# The machine's name has a digest of all that it is made by: a change there makes a new one, beside the old.
recipe=$(cat "$here"/{build-machine,make-image,make-busybox-image,machine/*} | sha256sum | cut -c1-12)
server_folder=$cache/server-$BOXLITE_VERSION
machine_folder=$cache/machine-$DEBIAN_SUITE-$recipe
PATH=$PATH:/usr/sbin:/sbin

say() { echo "bulkhead boxlite: $*" >&2; }
give_up() { say "$*"; exit 1; }

# quietly LOG SENTENCE COMMAND...: a failure is the sentence and the end of the log.
quietly() {
    local log=$1 sentence=$2
    shift 2
    "$@" >>"$log" 2>&1 </dev/null && return
    say "$sentence; the end of what it said:"
    tail -n 20 "$log" | sed 's/^/    /' >&2
    exit 1
}

# build_once FOLDER FUNCTION: makes FOLDER from what FUNCTION leaves in the working folder. Who comes second waits for
# the first. Only a finished folder gets the name; what a killed build left is thrown away by the next one.
build_once() {
    local folder=$1 build=$2 lock
    [ -d "$folder" ] && return
    mkdir -p "$cache"
    exec {lock}>"$folder.lock"
    flock --nonblock "$lock" || { say "waiting for another build of $(basename "$folder")"; flock "$lock"; }
    if [ ! -d "$folder" ]; then
        rm -rf "$folder.building"
        mkdir "$folder.building"
        cd "$folder.building"
        "$build"
        cd "$cache"
        mv --no-target-directory "$folder.building" "$folder"
    fi
    exec {lock}>&-
}
