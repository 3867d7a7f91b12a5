#!/usr/bin/env bash
# every setting the extension defines is documented in the README, and the README names no other
diff <(git grep -ohE '"pg_billing\.[a-z_]+"' -- extension/settings.cpp | tr -d '"' | sort -u) \
    <(grep -oE '^\| `pg_billing\.[a-z_]+`' README.md | tr -d '|` ' | sort -u)
