#!/usr/bin/env bash
# the shim answers every SQLSTATE of class UB with a status and a code, those that docs/errors.md states
diff <(sed -nE 's/.*\{"(UB[0-9]{3})", ([0-9]+), "([a-z_]+)".*/\1 \2 \3/p' shim/problem.cpp | sort) \
    <(sed -nE 's/^\| `(UB[0-9]{3})` \|.*\| *([0-9]*) *\| *`?([a-z_]*)`? *\|$/\1 \2 \3/p' docs/errors.md | sort)
