#!/usr/bin/env bash
# no tab, trailing blank or missing last newline in our text files
bad=0
git grep -nIP '[ \t\r]+$' -- ':!*.out' ':!test/fuzz/corpus' && bad=1
git grep -nIP '\t' -- ':!*.out' ':!Makefile' ':!packaging/debian/rules' ':!*.json' && bad=1
while IFS= read -r -d '' file; do
    [ ! -s "$file" ] || [ -z "$(tail -c 1 "$file")" ] || { echo "$file: no newline at its end" && bad=1; }
done < <(git ls-files -z ':!*.out' ':!test/fuzz/corpus')
exit $bad
