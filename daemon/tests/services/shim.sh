#!/bin/sh
# A shim for tests: its socket, beside the daemon's, is served by the test itself.
while [ $# -gt 1 ]; do
    case "$1" in
        -address) address=$2; shift ;;
        -id) id=$2; shift ;;
    esac
    shift
done
if [ "$1" = start ]; then
    printf 'unix://%s/shim-%s.sock' "${address%/*}" "$id"
fi
