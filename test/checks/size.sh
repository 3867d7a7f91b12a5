#!/usr/bin/env bash
# no file in the repository is larger than 200 kB
git ls-files -z | xargs -0 du -b | awk '$1 > 204800 { print; bad = 1 } END { exit bad }'
