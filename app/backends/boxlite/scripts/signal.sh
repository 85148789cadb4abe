#!/bin/sh
# A signal to the group of an execution's first process, which has no parent in the box and leads its group
# (seen: `7 (sh) S 0 7 7`); a daemon's parent is PID 1.
. ./marked.sh
number=$1 mark=$2
for pid in $(marked); do
  read -r line 2>/dev/null <"/proc/$pid/stat" || continue
  # shellcheck disable=SC2086 # state, parent, group: a word each
  set -- ${line##*) }
  if [ "$1" != Z ] && [ "$2" = 0 ] && [ "$3" = "$pid" ]; then
    kill "-$number" "-$pid" && exit 0
  fi
done
exit 3
