# A tree is built in a folder of its own in the directory, looked at whole, and then moved into place: a subtree that is
# not there yet in one piece.
# shellcheck shell=sh
hold=${path%/}/$2
undo() { [ -z "$hold" ] || rm -rf -- "$hold"; unmake; }
