#!/bin/sh
# A condition is checked by us and holds until `look` says something else. From there to the rename it is a moment,
# in which another writer wins over the condition; not for a file that must be new: link(2) makes none twice.
. ./start.sh
. ./place.sh
undo() { [ -z "$waiting" ] || rm -f -- "$waiting"; unmake; }
. ./make.sh
waiting=''
# The permissions asked for; else those of the file that is replaced, without set-id bits; else DEFAULT_MODE.
mode_of() {
  [ -z "$1" ] || { echo "$1"; return; }
  kept=$(stat -L -c %a -- "$path" 2>/dev/null) || kept=$DEFAULT_MODE
  printf '%o' $((0$kept & 0777))
}
look "$path" && place "$2" || exit 1
echo "$now"
read -r _word || exit 1
make "${waiting%/*}" || exit 1
(umask 077; set -C; : >"$waiting") || exit 1
feed >>"$waiting" && chmod "$(mode_of "$3")" "$waiting" && sum=$(sha256sum <"$waiting") || exit 1
echo "sum ${sum%% *}"
while read -r known; do
  look "$path" || exit 1
  if [ -d "$path" ]; then :
  elif [ "$known" = any ]; then mv -fT -- "$waiting" "$path" && echo "done $now" && made=$present; exit
  elif [ "$now" != "$known" ]; then :
  elif [ "$now" != none ]; then mv -fT -- "$waiting" "$path" && echo "done $now" && made=$present; exit
  else
    said=$(ln -- "$waiting" "$path" 2>&1) && [ ! -d "$path" ] && { echo "done none"; made=$present; exit; }
    rm -f -- "$path/${waiting##*/}" 2>/dev/null # link(2) found a directory in the place of nothing
    look "$path" || exit 1
    [ "$now" != none ] || { echo "$said" >&2; exit 1; }
  fi
  echo "again $now"
done
