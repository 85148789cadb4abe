# `make`: a directory with its parents; `unmake`: those that were not there, if nothing else has come into them.
# `undo` is what a script does before it ends, whatever ends it.
# shellcheck shell=sh
made='' present=''
make() {
  made=$1 present=$1
  while [ -n "$present" ] && [ ! -e "$present" ] && [ ! -L "$present" ]; do present=${present%/*}; done
  mkdir -p -- "${made:-/}"
}
unmake() {
  while [ "$made" != "$present" ]; do rmdir -- "$made" 2>/dev/null; made=${made%/*}; done
}
trap undo EXIT
trap 'exit 1' HUP INT TERM PIPE
