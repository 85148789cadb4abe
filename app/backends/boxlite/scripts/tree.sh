#!/bin/sh
# First all names below a directory. Of those that we then choose: what stat(1) says, each record behind a word that no
# name has in it; where links lead; the content of files, of which each is "SIZE ./NAME".
. ./start.sh
token=$2
look "$path" || exit 1
echo "$now"
case $now in 'is 4'*) ;; *) exit 0 ;; esac
cd -- "$path" 2>/dev/null || { echo "$path: Permission denied" >&2; exit 1; }
stream find . -mindepth 1 ${3:+-maxdepth "$3"} -print0
chosen() { dd bs="$size" count=1 iflag=fullblock status=none <&6 | xargs -0 "$@"; }
# shellcheck disable=SC2016 # what stands in single quotes is for the inner shell
while read -r request size; do
  case $request in
    facts) stream chosen sh -c 'stat -c "$0" -- "$@" 2>/dev/null; :' "$token $FACTS %h.%d %n" ;;
    readable) stream chosen sh -c '
      for name do [ -r "$name" ] || [ ! -e "$name" ] || { echo "$name: Permission denied" >&2; exit 1; }; done' sh ;;
    targets) stream chosen sh -c '
      for name do printf %s "$0"; readlink -- "$name" 2>/dev/null || echo; done' "$token" ;;
    contents) stream chosen sh -c '
      for request do
        name=${request#* }
        if [ -f "$name" ]; then printf +; head -c "${request%% *}" "$name" || exit; else printf -; fi
        printf %s "$0"
      done' "$token" ;;
  esac
done
