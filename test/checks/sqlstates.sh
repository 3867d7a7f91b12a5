#!/usr/bin/env bash
# every SQLSTATE of class UB that can be raised is explained in docs/errors.md, and no other
diff <({
    git grep -ohE "(ERRCODE |refused_with :)= 'UB[0-9]{3}'" -- sql | tr -d "'" | cut -d' ' -f3
    git grep -ohE "MAKE_SQLSTATE\('U', 'B'(, '[0-9]'){3}\)" -- extension | sed "s/MAKE_SQLSTATE//; s/[(),' ]//g"
} | sort -u) <(grep -oE '^\| `UB[0-9]{3}`' docs/errors.md | tr -d '|` ' | sort -u)
