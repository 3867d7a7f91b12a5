#!/usr/bin/env bash
# every function with raised rights, and every plpgsql function, pins its search_path
git ls-files -z 'sql/*.sql' | xargs -0 awk '
    FNR == 1 { head = "" }
    /^ *CREATE (OR REPLACE )?FUNCTION/ { head = ""; where = FILENAME ":" FNR }
    { head = head " " $0 }
    /AS (\$|\x27)|RETURN / && where {
        if (head ~ /SECURITY DEFINER|LANGUAGE plpgsql/ && head !~ /SET search_path = pg_catalog, pg_temp/) { print where; bad = 1 }
        where = ""
    }
    END { exit bad }'
