#!/bin/sh
# The digest is that of the archive which tar(1) has read.
. ./start.sh
need tar tee mkfifo
. ./hold.sh
. ./make.sh
look "$path" || exit 1
echo "$now"
case $now in none | 'is 4'*) ;; *) hold=''; exit 0 ;; esac
read -r _word || { hold=''; exit 1; }
make "${path%/}" && mkdir -m 700 -- "$hold" && mkdir -- "$hold/tree" && mkfifo -- "$hold/copy" || exit 1
exec 5>"$hold/sum" # before: what is made late in a folder that goes away would keep it
sha256sum <"$hold/copy" >&5 &
feed | tee -- "$hold/copy" | (umask 0; tar -xof - -C "$hold/tree") || exit 1
wait
read -r sum _rest <"$hold/sum"
echo "sum $sum"
read -r _word || exit 1
each() {
  for child in "$2"/* "$2"/.[!.]* "$2"/..?*; do
    [ -e "$child" ] || [ -L "$child" ] || continue
    $1 "$child" "${path%/}/${child#"$hold/tree/"}" || return
  done
}
clash() {
  echo "clash $(stat -c "$FACTS" -- "$1")" >&9
  stream printf %s "$1"
  exit 0
}
check() {
  if [ -L "$1" ] || [ ! -d "$1" ]; then
    [ -L "$2" ] || [ ! -d "$2" ] || clash "$2"
  elif [ -d "$2" ]; then each check "$1"
  elif [ -L "$2" ] || [ -e "$2" ]; then clash "$2"
  fi
}
move() {
  if [ ! -L "$1" ] && [ -d "$1" ] && [ -d "$2" ]; then each move "$1"; else mv -fT -- "$1" "$2"; fi
}
each check "$hold/tree"
echo checked
each move "$hold/tree" || exit 1
cd -- "$path" || exit 1
while read -r mode size && [ "$size" -gt 0 ]; do
  dd bs="$size" count=1 iflag=fullblock status=none <&6 | xargs -0 chmod "$mode" -- || exit 1
done
echo 'done'
made=$present
