#!/usr/bin/env bash
# no source file is longer than 450 lines
git ls-files '*.cpp' '*.hpp' '*.sql' '*.sh' '*.js' '*.mjs' | xargs wc -l | awk '$1 > 450 && $2 != "total" { print; bad = 1 } END { exit bad }'
