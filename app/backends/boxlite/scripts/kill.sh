#!/bin/sh
# Kills all that has a mark. It stops what it finds before it kills it, so that nothing forks on meanwhile, and looks
# again until nothing is left: what is dead and not reaped yet has an empty environment. 6: there was nothing from the
# start. 3: something is left.
. ./marked.sh
mark=$1 round=0
while [ $round -lt 20 ]; do
  found=$(marked)
  [ -n "$found" ] || exit $((round ? 0 : 6))
  # shellcheck disable=SC2086 # a word for each process
  kill -STOP $found 2>/dev/null
  for pid in $found; do kill -9 "-$pid" 2>/dev/null; done
  # shellcheck disable=SC2086 # as above
  kill -9 $found 2>/dev/null
  round=$((round + 1))
done
exit 3
