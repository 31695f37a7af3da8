#!/bin/sh
# Stands for @PATH@: asks the process that has it loaded. Where that can't be, runs a copy of it.
set -C
if [ -d /proc/@PID@ ] && ! [ -f /proc/self/fd/0 ] && ! [ -f /proc/self/fd/1 ] && ! [ -f /proc/self/fd/2 ]; then
    for slot in 1 2 3 4; do
        if { true > @DIR@/lock.$slot; } 2> /dev/null; then
            echo "$slot $$" > @DIR@/requests
            read -r status < @DIR@/reply.$slot
            [ "$status" = '!' ] || exit "$status"
            break
        fi
    done
fi
exec /usr/bin/perl @DIR@/original "$@"
