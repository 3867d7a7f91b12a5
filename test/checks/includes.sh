#!/usr/bin/env bash
# folders include each other, and outside libraries, only in the directions docs/architecture.md allows
bad=$(git grep -nE '^#include [<"]' -- '*.cpp' '*.hpp' | awk -F: '
    function allowed(from, to) {
        if (from == to) return 1
        if (from == "worker") return to == "stripe" || to == "notify" || file ~ /^extension\/(pg|guard|worker_state)\.hpp$/
        if (from == "shim") return to == "stripe"
        if (from == "sandbox") return to == "stripe" || file == "shim/http_server.hpp"
        return from == "test"    # tests may include anything
    }
    function folder(path) {
        if (path ~ /^test\/sandbox\//) return "sandbox"
        return substr(path, 1, index(path, "/") - 1)
    }
    {
        line = $0; sub(/^[^:]*:[^:]*:/, "", line)
        file = line; sub(/^#include [<"]/, "", file); sub(/[>"].*/, "", file)
        from = folder($1)
        if (line ~ /^#include "(extension|worker|stripe|notify|shim|test)\//) { if (!allowed(from, folder(file))) print }
        else if (file ~ /^curl\//) { if (from != "worker" && from != "test") print }
        else if (file ~ /^(libpq-fe\.h|CLI\/)/) { if (from != "shim" && from !~ /^(sandbox|test)$/) print }
        else if (file ~ /^boost\//) { if (from != "shim" && from != "sandbox" && from != "test") print }
        else if (file ~ /^(nlohmann|openssl)\//) { if (from == "extension") print }
    }')
[ -z "$bad" ] || { echo "$bad"; exit 1; }
