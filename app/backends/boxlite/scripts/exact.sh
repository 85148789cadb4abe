#!/bin/sh
# Runs a command so that every byte of its output arrives as it was written, and the command waits when it is ahead.
#
#     sh -c 'eval "$0"' THIS start STDIN COUNT VARIABLE=VALUE... COMMAND ARGUMENT...
#
# STDIN is `open` or `none`; COUNT says how many variables follow. In the end this shell becomes the command: process,
# group, exit status, directory and arguments are the command's own. What carries its bytes is in another session, so no
# signal to the command's group reaches it. It ends when nobody has the command's output open any more.
#
# Said, in lines, on the execution's stdout and stderr:
#     >               what carries the bytes is there (stdout)
#     :NUMBER SIZE    a piece: SIZE bytes of base64 and a newline follow
#     .NUMBER         the channel has ended, after so many pieces
#     <NUMBER         a piece of stdin was taken (stdout)
#     |NUMBER         it was not: nobody reads stdin any more (stdout)
#     !WHY            the command cannot begin (stdout)
# Heard, in lines, on the execution's stdin:
#     o NUMBER        the pieces of stdout up to this one have arrived; two may be under way
#     e NUMBER        those of stderr
#     i NUMBER SIZE   a piece of stdin: SIZE bytes follow, 0 is its end. A number that came before is passed over

give_up() { # give_up STATUS WHY
  echo "!$2" >&9
  exit "$1"
}

# line TEXT, for a channel with one writer
line() {
  printf '%s\n' "$1"
}

# in_turn TEXT: a pipe takes in 4096 bytes at once, a piece is longer, so who writes holds the line of descriptor 9
in_turn() {
  read -r _ <&9
  printf '%s\n' "$1"
  echo >&9
}

# pump SAY: from stdin to stdout, a piece at a time. What has arrived is told on descriptor 3.
pump() {
  sent=0 arrived=0
  while :; do
    text=$({ { dd bs=65536 count=1 || echo ! >&4; } | base64; } 4>&1) || text=!
    [ -n "$text" ] || break
    sent=$((sent + 1))
    while [ $((sent - arrived)) -gt 2 ]; do read -r arrived <&3; done
    $1 ":$sent ${#text}
$text"
  done
  $1 ".$sent"
}

# feed SAY: pieces of descriptor 7 to the command's stdin, descriptor 8. It waits until the command takes them.
feed() {
  while read -r number size; do
    if [ "$size" = 0 ]; then
      exec 8>&-
      $1 "<$number"
    elif dd bs="$size" count=1 iflag=fullblock >&8; then
      $1 "<$number"
    else
      exec 8>/dev/null
      $1 "|$number"
    fi
  done <&7
}

# Nothing here waits for the command, so that what has arrived is told although it reads nothing.
obey() {
  known=0
  while read -r word number size; do
    case $word in
      o) echo "$number" >&3 ;;
      e) echo "$number" >&5 ;;
      i)
        if [ "$number" -gt "$known" ]; then
          known=$number
          echo "$number $size" >&7
          [ "$size" = 0 ] || dd bs="$size" count=1 iflag=fullblock >&7
        elif [ "$size" != 0 ]; then
          dd bs="$size" count=1 iflag=fullblock >/dev/null
        fi
        ;;
    esac
  done <&6
}

# serve STDIN. Descriptors: 1 and 3 are the execution's stdout and stderr, 4 and 5 the command's, 6 the execution's
# stdin, 8 the command's. A here-document is a pipe; /proc opens its other end. Its line is read, or is a first turn.
# Only `exec` closes a descriptor for good: of a function's redirections the shell keeps the old ones.
serve() {
  exec 7<<END
0
END
  exec 7<>/proc/self/fd/7
  {
    exec <&5 >&3 3<&7 4<&- 5<&- 6<&- 7<&- 8>&-
    pump line
  } &
  errors=$!
  exec 5<&7 3<<END
0
END
  exec 3<>/proc/self/fd/3
  say=line
  if [ "$1" = open ]; then
    say=in_turn
    exec 7<<END 9<<TURN
0
END
0
TURN
    exec 7<>/proc/self/fd/7 9<>/proc/self/fd/9
    read -r _ <&7
    {
      exec 3<&- 4<&- 5<&- 6<&-
      feed $say
    } &
    exec 8>&-
  fi
  {
    exec 4<&- 9<&-
    obey
  } &
  exec <&4 4<&- 5<&- 6<&-
  line ">"
  pump $say
  wait $errors
  kill -9 0
}

if [ "$1" = serve ]; then
  serve "$2"
  exit
fi

exec 3>&2 2>/dev/null 6<&0 9>&1
stdin=$2 count=$3 path=$PATH
shift 3
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

exec 4<<END 5<<END 0<<END
0
END
0
END
0
END
[ -p /proc/self/fd/4 ] || give_up 125 "has a shell whose here-documents are files"
read -r _ <&4
read -r _ <&5
read -r _
exec 1>/proc/self/fd/4 7>/proc/self/fd/5 8>/proc/self/fd/0
[ "$stdin" = open ] || exec </dev/null 8>&-
# Through a process that ends at once: the command gets no child that it did not start.
# shellcheck disable=SC2016 # the inner shell fills it in
(setsid sh -c 'eval "$0"' "$0" serve "$stdin" <&6 >&9 7>&- 9>&- &)
exec 2>&7 3>&- 4<&- 5<&- 6<&- 7>&- 8>&- 9>&-
exec env -u _ -u PWD -u OLDPWD -u SHLVL -u BULKHEAD_WRAPPER "$@"
