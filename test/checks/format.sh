#!/usr/bin/env bash
# C++ is formatted as .clang-format says
git ls-files '*.cpp' '*.hpp' | xargs clang-format --dry-run -Werror 2>&1 | grep -E 'error|warning' | cut -d: -f1 | sort -u
exit "${PIPESTATUS[1]}"
