#!/bin/sh
. ./start.sh
look "$path" && echo "$now"
