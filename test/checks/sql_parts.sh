#!/usr/bin/env bash
# every file in sql/ is part of the extension's script: SQL_PARTS in the Makefile names it once
diff <(git ls-files 'sql/*.sql' | sed -n 's#^sql/\([^/]*\)\.sql$#\1#p' | sort) \
    <(sed -n '/^SQL_PARTS/,/[^\\]$/p' Makefile | sed 's/^SQL_PARTS *=//; s/\\//' | tr -s ' \n' '\n' | sed '/^$/d' | sort)
