#!/usr/bin/env bash
# every public SQL function has a COMMENT
missing=$(comm -23 \
    <(git grep -ohE '^ *CREATE (OR REPLACE )?FUNCTION billing\.[a-z]\w*' -- sql | sed 's/.*billing\.//' | sort -u) \
    <(git grep -ohE 'COMMENT ON FUNCTION billing\.[a-z]\w*' -- sql | sed 's/.*billing\.//' | sort -u))
[ -z "$missing" ] || { echo "$missing"; exit 1; }
