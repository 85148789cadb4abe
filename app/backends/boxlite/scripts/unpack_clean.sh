#!/bin/sh
. ./start.sh
. ./hold.sh
rm -rf -- "$hold"
