#!/bin/sh
# Without its workspace a box is of little use.
. ./start.sh
itself() { stat -c %d.%i -- "$1" 2>/dev/null; }
here=$(itself "$path")
[ -z "$here" ] || [ "$here" != "$(itself /workspace)" ] || { echo "$path: Permission denied" >&2; exit 1; }
if [ -L "$path" ] || [ ! -d "$path" ]; then rm -- "$path"
elif [ -n "$2" ]; then rm -rf -- "$path"
else rmdir -- "$path"
fi && echo gone
