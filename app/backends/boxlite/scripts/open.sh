#!/bin/sh
# The file is held by its descriptor: every read is of the same file, whatever the path leads to meanwhile.
. ./start.sh
look "$path" || exit 1
echo "$now"
case $now in 'is 8'*) ;; *) exit 0 ;; esac
reads() {
  echo "open $(stat -L -c "$FACTS" /proc/self/fd/3)"
  while read -r skip count <&6; do
    stream dd if=/proc/self/fd/3 bs="$PAGE_BYTES" skip="$skip" count="$count" status=none
  done
}
reads 3<"$path"
