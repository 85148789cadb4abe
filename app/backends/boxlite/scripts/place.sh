# `place`: where the file is, through links, and where its new content waits beside it. Not by `readlink -f`: of a link
# to nothing busybox 1.37 tells another place.
# shellcheck shell=sh
place() {
  links=0
  while [ -L "$path" ] && [ $links -lt 40 ]; do
    target=$(readlink -- "$path" && echo .) || return
    target=${target%??} links=$((links + 1))
    case $target in /*) path=$target ;; *) path=${path%/*}/$target ;; esac
  done
  waiting=${path%/*}/$1
}
