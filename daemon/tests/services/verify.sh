#!/bin/sh
# An image verifier for tests: images called evil are not for us.
case "$2" in
    */evil:*) echo "not for us"; exit 1 ;;
esac
