# How each script on files begins. It sets `path`, and what is said about a file (`look`), sent (`stream`) and received
# (`feed`). `need`: the programs without which a script cannot work.
# shellcheck shell=sh
umask 022
exec 6<&0 9>&1
need() {
  for tool do
    command -v "$tool" >/dev/null || { echo "lacks $tool"; exit 1; }
  done
}
need stat dd base64 sha256sum mkdir mv ln rm rmdir readlink chmod find xargs head
bytes() { printf '%b.' "$1"; }
path=$(bytes "$1") path=${path%.}
look() {
  if now=$(stat -L -c "$FACTS" -- "$1" 2>&1); then now="is $now"; return; fi
  case $now in *"No such file or directory") now=none ;; *) echo "$now" >&2; return 1 ;; esac
}
pump() {
  sent=0
  while text=$({ dd bs="$PIECE_BYTES" count=1 iflag=fullblock status=none || echo failed >&8; } | base64) || echo failed >&8
    [ -n "$text" ]
  do
    sum=$(echo "$text" | sha256sum)
    echo "piece ${#text} ${sum%% *}" >&9
    echo "$text" >&9
    sent=$((sent + 1))
    [ $sent -lt 2 ] || read -r _word <&6 || return
  done
  [ $sent -eq 0 ] || read -r _word <&6
}
stream() {
  status=$({ { "$@"; echo $? >&8; } | pump; } 8>&1)
  case $status in *failed*) status=255 ;; esac
  echo "end $status" >&9
}
feed() {
  while read -r size <&6; do
    [ "$size" -gt 0 ] || return 0
    dd bs="$size" count=1 iflag=fullblock status=none <&6 || return 1
    echo fed >&9
  done
  return 1
}
