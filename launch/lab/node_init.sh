#!/bin/bash
# The init of one node: node_init.sh NAME HOSTS MERGED_HOSTS SLURMD [ARGUMENT...]
# It runs as process 1 of the node's namespaces, so that its death is the death of everything on the node.
# The node knows its fellows by HOSTS, and everybody else as the machine does.
cat "$2" /etc/hosts >"$3" && hostname "$1" && mount --bind "$3" /etc/hosts || exit 1
shift 3
"$@" &
slurmd=$!
# Orphans of jobs become children of process 1; each `wait` reaps what has ended so far.
while kill -0 "$slurmd" 2>/dev/null; do wait; done
