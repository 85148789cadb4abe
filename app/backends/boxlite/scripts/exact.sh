#!/bin/sh
# Runs a command so that every byte of its output arrives as it was written, and the command waits when it is ahead.
#
#     sh -c 'eval "$0"' THIS start STDIN STDERR LIMITS COUNT VARIABLE=VALUE... COMMAND ARGUMENT...
#
# STDIN is `open` or `none`; STDERR is `apart`, or `merged` into the pipe of stdout; LIMITS are three words: stack of a
# process in KiB, its descriptors, a file in blocks of 512 bytes, or `-`; COUNT says how many variables follow.
# In the end this shell becomes the command: process, group, exit status, directory and arguments are the command's own.
# What carries its bytes is in another session, so no signal to the command's group reaches it. It ends when nobody has
# the command's output open any more.
#
# Said, in lines, on the execution's stdout and stderr:
#     >               what carries the bytes is there (stdout)
#     :NUMBER         a piece: lines of base64 follow, and a line `;`
#     .NUMBER         the channel has ended, after so many pieces
#     <NUMBER         a piece of stdin was taken (stdout)
#     |NUMBER         it was not: nobody reads stdin any more (stdout)
#     !WHY            the command cannot begin (stdout). Without WHY: a program failed, and bytes are lost
# These two of stdin may come in the middle of a piece, also of a line of it, but whole: a pipe takes 4096 bytes at once.
# Heard, in lines, on the execution's stdin:
#     o NUMBER        the pieces of stdout up to this one have arrived; two may be under way
#     e NUMBER        those of stderr
#     i NUMBER SIZE   a piece of stdin: SIZE bytes follow, 0 is its end. A number that came before is passed over

give_up() { # give_up STATUS WHY
  echo "!$2" >&9
  exit "$1"
}

# From stdin to stdout, a piece at a time. What has arrived is told on descriptor 3. dd says how much it has read; nothing
# is the end. A piece waits in the pipe 4, which has room for it, until the one before the last has arrived.
pump() {
  sent=0 arrived=0
  while :; do
    case $(exec dd bs=65536 count=1 2>&1 >/proc/self/fd/4) in
      0+0*) break ;;
      [01]+[01]*) ;;
      *) echo ! ;;
    esac
    while [ $((sent - arrived)) -gt 1 ]; do read -r arrived <&3; done
    sent=$((sent + 1))
    echo ":$sent"
    base64 <&4 || echo !
    echo ";"
  done
  echo ".$sent"
}

# Pieces of descriptor 9 to the command's stdin, descriptor 8. It waits until the command takes them.
feed() {
  while read -r number size; do
    if [ "$size" = 0 ]; then
      exec 8>&-
      echo "<$number"
    elif dd bs="$size" count=1 iflag=fullblock >&8; then
      echo "<$number"
    else
      exec 8>/dev/null
      echo "|$number"
    fi
  done <&9
}

# Nothing here waits for the command, so that what has arrived is told although it reads nothing.
obey() {
  known=0
  while read -r word number size; do
    case $word in
      o) echo "$number" >&7 ;;
      e) echo "$number" >&5 ;;
      i)
        if [ "$number" -gt "$known" ]; then
          known=$number
          echo "$number $size" >&9
          [ "$size" = 0 ] || dd bs="$size" count=1 iflag=fullblock >&9
        elif [ "$size" != 0 ]; then
          dd bs="$size" count=1 iflag=fullblock >/dev/null
        fi
        ;;
    esac
  done <&6
}

# serve STDIN. Descriptors: 3, 6 and 9 are the execution's stderr, stdin and stdout, 1, 7 and 8 the command's stdout,
# stderr and stdin, open for both directions; 4 and 5 are the pipes in which pieces of stdout and stderr wait.
# Only `exec` closes a descriptor for good: of a function's redirections the shell keeps the old ones. What runs in the
# background has another stdin.
serve() {
  exec </proc/self/fd/7 7<&1 1>&9 9</proc/self/fd/7 7<<END
0
END
  exec 7<>/proc/self/fd/7
  {
    exec <&9 3<&7 5<&- 6<&- 7<&- 8>&- 9<&-
    echo ">"
    pump
  } &
  output=$!
  exec 4<&5 5<<END 9<<END
0
END
0
END
  read -r _ <&9
  exec 5<>/proc/self/fd/5 9<>/proc/self/fd/9
  if [ "$1" = open ]; then
    {
      exec 3<&- 4<&- 5<&- 6<&- 7<&- 8>/proc/self/fd/8
      feed
    } &
  fi
  exec 8>&-
  {
    exec 3<&- 4<&-
    obey
  } &
  exec >&3 3<&5 5<&- 6<&- 7<&- 9<&-
  pump
  wait $output
  kill -9 0
}

if [ "$1" = serve ]; then
  serve "$2"
  exit
fi

exec 3>&2 2>/dev/null 6<&0 9>&1
stdin=$2 stderr=$3 limits=$4 count=$5 path=$PATH
shift 5
for tool in dd base64 env setsid; do
  command -v $tool >/dev/null || give_up 125 "lacks $tool"
done

# Whether there is such a program is told before it begins: later nobody could tell it from a program that says 127.
program=''
eval "program=\${$((count + 1))}"
for variable; do
  [ "$count" -gt 0 ] || break
  count=$((count - 1))
  case $variable in PATH=*) path=${variable#PATH=} ;; esac
done
why=missing
look() { # look FILE
  if [ -f "$1" ] && [ -x "$1" ]; then
    why=''
  elif [ -e "$1" ] && [ "$why" = missing ]; then
    why=denied
  fi
}
case $program in
  */*) look "$program" ;;
  *)
    set -f
    IFS=:
    for folder in $path; do
      [ -z "$why" ] || look "${folder:-.}/$program"
    done
    unset IFS
    ;;
esac
case $why in
  missing) give_up 127 missing ;;
  denied) give_up 126 denied ;;
esac

# Limits of setrlimit(2), soft and hard. One that was lower stays. What is in force is read afterwards, as shells differ in
# the units of `ulimit`.
limit() { # limit OPTION UNIT LIMIT NAME
  [ "$3" = - ] && return
  (ulimit "$1" "$3") && ulimit "$1" "$3"
  while read -r line; do
    case $line in
      "$4 "*)
        # shellcheck disable=SC2086 # words: the soft limit, the hard limit
        set -- "$(($2 * $3))" ${line#"$4"}
        [ "$3" -le "$1" ] && return
        ;;
    esac
  done </proc/self/limits
  give_up 125 "cannot set limits"
}
set_limits() { # set_limits STACK FILES BLOCKS
  limit -s 1024 "$1" "Max stack size"
  limit -f 512 "$3" "Max file size"
  # shellcheck disable=SC3045 # POSIX has -f alone; dash, bash and busybox have these too
  [ "$2" = - ] || [ "$(ulimit -Hn)" -le "$2" ] || ulimit -n "$2" # last: to read a file takes a descriptor above 9
}
# shellcheck disable=SC2086 # three words
[ "$limits" = "- - -" ] || (set_limits $limits) || exit 125

# A here-document is a pipe; /proc opens its other end. A pipe that is made later may be smaller (pipe-user-pages-soft in
# pipe(7)), so those in which pieces wait are made first.
exec 4<<END 5<<END 1<<END 7<<END 8<<END
0
END
0
END
0
END
0
END
0
END
[ -p /proc/self/fd/4 ] || give_up 125 "has a shell whose here-documents are files"
for pipe in 4 5 1 7 8; do read -r _ <&$pipe; done
exec 1<>/proc/self/fd/1 7<>/proc/self/fd/7 8<>/proc/self/fd/8
[ "$stdin" = open ] || exec 8</dev/null
# Through a process that ends at once: the command gets no child that it did not start.
# shellcheck disable=SC2016 # the inner shell fills it in
(setsid sh -c 'eval "$0"' "$0" serve "$stdin" &)
exec </proc/self/fd/8 >/proc/self/fd/1 2>/proc/self/fd/7 3>&- 4<&- 5<&- 6<&- 7>&- 8>&- 9>&-
[ "$stderr" = apart ] || exec 2>&1
# shellcheck disable=SC2086 # three words. Here, as what carries the bytes shall not have them
[ "$limits" = "- - -" ] || set_limits $limits
exec env -u _ -u PWD -u OLDPWD -u SHLVL -u BULKHEAD_WRAPPER "$@"
