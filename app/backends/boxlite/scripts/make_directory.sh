#!/bin/sh
. ./start.sh
undo() { unmake; }
. ./make.sh
look "$path" || exit 1
[ "$now" = none ] || { echo "$now"; exit 0; }
make "${path%/*}" || exit 1
if said=$(mkdir -- "$path" 2>&1); then echo made; elif [ -d "$path" ]; then echo there; else
  echo "$said" >&2
  exit 1
fi
made=$present
