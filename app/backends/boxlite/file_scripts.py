"""The scripts by which we reach a box's files: POSIX sh and programs that busybox, coreutils and toybox all have.

A script reads words of ours, a line each, on its stdin, and prints lines. What may be bytes of any kind goes

- in by `feed`: a line with the size of a block, the block, an acknowledgement; a size of 0 is the end;
- out by `pump`: a line with length and digest of a piece, the piece in base64; then its end, with a status.

Two pieces of 100 KB are under way at most: the server forgets what is more than 256 KiB behind, without a word.
Words of ours are read by the shell, byte by byte, and blocks by a dd that fills them: both take no byte too many.
"""

from __future__ import annotations

from app.core.files import DEFAULT_MODE

BLOCK_BYTES = 256 * 1024  # of `feed`
PIECE_BYTES = 72 * 1024  # of `pump`
PAGE_BYTES = 4096  # reads begin at a multiple of it: portable dd knows no other
FACTS = "%f %s %Y %i %y"  # busybox has nanoseconds in the last one only

_START = r"""
umask 022
exec 6<&0 9>&1
for tool in stat dd base64 sha256sum mkdir mv ln rm rmdir readlink chmod find xargs head $needs; do
  command -v $tool >/dev/null || { echo "lacks $tool"; exit 1; }
done
bytes() { printf '%b.' "$1"; }
path=$(bytes "$1") path=${path%.}
look() {
  if now=$(stat -L -c "$facts" -- "$1" 2>&1); then now="is $now"; return; fi
  case $now in *"No such file or directory") now=none ;; *) echo "$now" >&2; return 1 ;; esac
}
pump() {
  sent=0
  while text=$({ dd bs=PIECE count=1 iflag=fullblock status=none || echo failed >&8; } | base64) || echo failed >&8
    [ -n "$text" ]
  do
    sum=$(echo "$text" | sha256sum)
    echo "piece ${#text} ${sum%% *}" >&9
    echo "$text" >&9
    sent=$((sent + 1))
    [ $sent -lt 2 ] || read -r word <&6 || return
  done
  [ $sent -eq 0 ] || read -r word <&6
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
""".replace("PIECE", str(PIECE_BYTES))


def script(body: str, needs: str = "") -> str:
    """`needs`: the programs that this one uses alone."""
    return f"facts='{FACTS}' needs='{needs}'{_START}{body}"


STAT = script(r"""
look "$path" && echo "$now"
""")

# The file is held by its descriptor: every read is of the same file, whatever the path leads to meanwhile.
OPEN = script(r"""
look "$path" || exit 1
echo "$now"
case $now in 'is 8'*) ;; *) exit 0 ;; esac
reads() {
  echo "open $(stat -L -c "$facts" /proc/self/fd/3)"
  while read -r skip count <&6; do
    stream dd if=/proc/self/fd/3 bs=PAGE skip="$skip" count="$count" status=none
  done
}
reads 3<"$path"
""").replace("PAGE", str(PAGE_BYTES))

# `make`: a directory with its parents; `unmake`: those that were not there, if nothing else has come into them.
# `undo` is what a script does before it ends, whatever ends it.
MAKE = r"""
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
"""

# `place`: where the file is, through links, and where its new content waits beside it. Not by `readlink -f`: of a link
# to nothing busybox 1.37 tells another place.
_PLACE = r"""
place() {
  links=0
  while [ -L "$path" ] && [ $links -lt 40 ]; do
    target=$(readlink -- "$path" && echo .) || return
    target=${target%??} links=$((links + 1))
    case $target in /*) path=$target ;; *) path=${path%/*}/$target ;; esac
  done
  folder=${path%/*} waiting=${path%/*}/$1
}
"""

# A condition is checked by us and holds until `look` says something else. From there to the rename it is a moment,
# in which another writer wins over the condition; not for a file that must be new: link(2) makes none twice.
WRITE = script(
    _PLACE
    + r"""
undo() { [ -z "$waiting" ] || rm -f -- "$waiting"; unmake; }
"""
    + MAKE
    + r"""
waiting=''
# The permissions asked for; else those of the file that is replaced, without set-id bits; else MODE.
mode_of() {
  [ -z "$1" ] || { echo "$1"; return; }
  kept=$(stat -L -c %a -- "$path" 2>/dev/null) || kept=MODE
  printf '%o' $((0$kept & 0777))
}
look "$path" && place "$2" || exit 1
echo "$now"
read -r word || exit 1
make "$folder" || exit 1
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
""".replace("MODE", f"{DEFAULT_MODE:o}")
)

CLEAN_WRITE = script(
    _PLACE
    + r"""
place "$2" && rm -f -- "$waiting"
"""
)

# First all names below a directory. Of those that we then choose: what stat(1) says, each record behind a word that no
# name has in it; where links lead; the content of files, of which each is "SIZE ./NAME".
TREE = script(r"""
token=$2
look "$path" || exit 1
echo "$now"
case $now in 'is 4'*) ;; *) exit 0 ;; esac
cd -- "$path" 2>/dev/null || { echo "$path: Permission denied" >&2; exit 1; }
stream find . -mindepth 1 ${3:+-maxdepth "$3"} -print0
chosen() { dd bs="$size" count=1 iflag=fullblock status=none <&6 | xargs -0 "$@"; }
while read -r wish size; do
  case $wish in
    facts) stream chosen sh -c 'stat -c "$0" -- "$@" 2>/dev/null; :' "$token $facts %h.%d %n" ;;
    readable) stream chosen sh -c '
      for name do [ -r "$name" ] || [ ! -e "$name" ] || { echo "$name: Permission denied" >&2; exit 1; }; done' sh ;;
    targets) stream chosen sh -c '
      for name do printf %s "$0"; readlink -- "$name" 2>/dev/null || echo; done' "$token" ;;
    contents) stream chosen sh -c '
      for wish do
        name=${wish#* }
        if [ -f "$name" ]; then printf +; head -c "${wish%% *}" "$name" || exit; else printf -; fi
        printf %s "$0"
      done' "$token" ;;
  esac
done
""")

MAKE_DIRECTORY = script(
    "undo() { unmake; }"
    + MAKE
    + r"""
look "$path" || exit 1
[ "$now" = none ] || { echo "$now"; exit 0; }
make "${path%/*}" || exit 1
if said=$(mkdir -- "$path" 2>&1); then echo made; elif [ -d "$path" ]; then echo there; else
  echo "$said" >&2
  exit 1
fi
made=$present
"""
)

# Without its workspace a box is of little use.
DELETE = script(r"""
itself() { stat -c %d.%i -- "$1" 2>/dev/null; }
here=$(itself "$path")
[ -z "$here" ] || [ "$here" != "$(itself /workspace)" ] || { echo "$path: Permission denied" >&2; exit 1; }
if [ -L "$path" ] || [ ! -d "$path" ]; then rm -- "$path"
elif [ -n "$2" ]; then rm -rf -- "$path"
else rmdir -- "$path"
fi && echo gone
""")
