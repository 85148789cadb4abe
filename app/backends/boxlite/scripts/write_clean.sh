#!/bin/sh
. ./start.sh
. ./place.sh
place "$2" && rm -f -- "$waiting"
