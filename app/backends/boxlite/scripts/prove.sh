#!/bin/sh
# prove.sh WORKSPACE NEEDED PROBE: what the box is, and a workspace in it. Builtins only, but for mkdir, and for what
# PROBE asks: why output cannot be exact. /proc/net/route has a line of heading; of IPv6 a box without a network has
# routes of lo.
mkdir -p "$1" || [ -z "$2" ] || exit 4
read -r release </proc/sys/kernel/osrelease && echo "kernel=$release"
cpus=0
while read -r word rest; do [ "$word" = processor ] && cpus=$((cpus + 1)); done </proc/cpuinfo
echo "cpus=$cpus"
while read -r word size rest; do [ "$word" = MemTotal: ] && echo "memory_kib=$size"; done </proc/meminfo
for link in /sys/class/net/*; do
  read -r flags <"$link/flags" && echo "link=${link##*/} $((flags & 1))"
done
routes=-1
while read -r rest; do routes=$((routes + 1)); done </proc/net/route
if [ -r /proc/net/ipv6_route ]; then
  while read -r rest; do [ "${rest##* }" = lo ] || routes=$((routes + 1)); done </proc/net/ipv6_route
fi
echo "routes=$routes"
[ -n "$3" ] || exit 0
lacks() {
  for tool in dd base64 env setsid; do
    command -v $tool >/dev/null || { echo "lacks $tool"; return; }
  done
  text=$({ printf x | dd bs=8 count=1 iflag=fullblock | base64; } 2>&1)
  case $text in 0+1*eA==* | eA==*0+1*) ;; *) echo "has another kind of dd or base64"; return ;; esac
  setsid env -u PWD true || { echo "has another kind of setsid or env"; return; }
  exec 4<<END
0
END
  [ -p /proc/self/fd/4 ] || echo "has a shell whose here-documents are files"
}
echo "inexact=$(lacks 2>/dev/null)"
exit 0
