# Private PostgreSQL servers for tests and the demo; sourced, needs nothing but what test/setup.sh installs.
#
# A server lives in $RUN/NAME (data, log, socket; no TCP), runs the extension staged in $PG_BILLING_ROOT (the installed one if
# that is empty), and is owned by an unprivileged user: `postgres` when we are root (PostgreSQL refuses to run as
# root), else ourselves. Several may run at once; cluster_use says which one psql and the helpers mean.

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=${PG_BILLING_BUILD:-$TOP/build}
PG_BILLING_ROOT=${PG_BILLING_ROOT-$BUILD/root}
RUN=$BUILD/run/$(basename "$0" .sh)
PG_CONFIG=${PG_CONFIG:-pg_config}
PG_BIN=$($PG_CONFIG --bindir) PG_LIB=$($PG_CONFIG --pkglibdir)
export PGUSER=postgres PGDATABASE=postgres PGTZ=UTC PGAPPNAME=test
unset PGHOST PGPORT PGSERVICE PGPASSFILE PGOPTIONS
declare -A CLUSTERS
CLUSTER=

die() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Runs a command as the user who owns the servers.
as_server_user() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid postgres --regid postgres --init-groups -- "$@"
    else
        "$@"
    fi
}

# Makes a directory the server user may write to, or says in one line why that cannot be.
server_directory() {
    mkdir -p "$1"
    [ "$(id -u)" != 0 ] || chown postgres "$1"
    as_server_user test -w "$1" ||
        die "user postgres cannot reach $1: clone to a directory that every user may enter (chmod o+x its parents)"
}

# wait_until [-t SECONDS] COMMAND…: polls until the command succeeds; fails, naming it, when the time is up.
wait_until() {
    local limit=30
    if [ "$1" = -t ]; then
        limit=$2
        shift 2
    fi
    local deadline=$((SECONDS + limit))
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -ge $deadline ]; then
            echo "# waited ${limit} s in vain for: $*" >&2
            return 1
        fi
        sleep .1
    done
}

# cluster_settings: the settings every private server has; later ones win.
cluster_settings() {
    cat <<CONF
shared_preload_libraries = 'pg_billing'
listen_addresses = ''
max_connections = 60
max_worker_processes = 16
shared_buffers = 128MB
max_wal_size = 2GB
fsync = off
full_page_writes = off
timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %b '
CONF
    [ -z "$PG_BILLING_ROOT" ] || cat <<CONF
extension_destdir = '$PG_BILLING_ROOT'
dynamic_library_path = '$PG_BILLING_ROOT$PG_LIB:\$libdir'
CONF
}

# cluster_init NAME [setting=value…]: a fresh, stopped server; whatever had that name before is gone.
cluster_init() {
    local name=$1 directory=$RUN/$1
    shift
    cluster_end "$name"
    rm -rf "$directory"
    server_directory "$directory"
    chmod 700 "$directory"
    as_server_user "$PG_BIN/initdb" -D "$directory/data" -U postgres -A trust -E UTF8 --locale=C.UTF-8 --no-sync \
        >"$directory/initdb.log" 2>&1 || die "initdb failed: $(tail -n 1 "$directory/initdb.log")"
    cluster_settings >>"$directory/data/postgresql.conf"
    cluster_configure "$name" "$@"
}

# cluster_configure NAME setting=value…: appends to the server's configuration (see cluster_reload).
cluster_configure() {
    local file=$RUN/$1/data/postgresql.conf setting
    shift
    for setting in "$@"; do
        echo "${setting%%=*} = '${setting#*=}'" >>"$file"
    done
}

# cluster_up NAME: starts an initialised server and makes it the one in use.
cluster_up() {
    local directory=$RUN/$1
    as_server_user "$PG_BIN/pg_ctl" -D "$directory/data" -l "$directory/log" -w -t 60 \
        -o "-k '$(cluster_socket "$1")'" start >/dev/null 2>&1 ||
        die "PostgreSQL did not start: $(grep -E 'FATAL|PANIC' "$directory/log" | tail -n 1)"
    CLUSTERS[$1]=up
    cluster_use "$1"
}

# cluster_socket NAME: the directory of the server's socket, closed to other users. A socket's path is limited to 107
# bytes, so a long one is put elsewhere.
cluster_socket() {
    local file=$RUN/$1/socket_directory
    [ -e "$file" ] || if [ ${#RUN} -le 70 ]; then
        echo "$RUN/$1" >"$file"
    else
        as_server_user mktemp -d /tmp/pg_billing.XXXXXX >"$file"
    fi
    cat "$file"
}

# cluster_start NAME [setting=value…]: initialises and starts a server.
cluster_start() {
    cluster_init "$@"
    cluster_up "$1"
}

# cluster_use NAME: what follows (psql, the helpers, PGHOST) means this server.
cluster_use() {
    CLUSTER=$1
    PGHOST=$(cluster_socket "$1")
    export PGHOST
}

# cluster_stop NAME [mode]: stops a server (mode fast unless told); no error when it is down already.
cluster_stop() {
    as_server_user "$PG_BIN/pg_ctl" -D "$RUN/$1/data" -m "${2:-fast}" -w -t 60 stop >/dev/null 2>&1 || true
}

# cluster_crash NAME: the immediate stop that leaves crash recovery to the next start.
cluster_crash() { cluster_stop "$1" immediate; }

# cluster_restart NAME [mode]: stops and starts a server.
cluster_restart() {
    cluster_stop "$@"
    cluster_up "$1"
}

# cluster_reload NAME [setting=value…]: changes settings that need no restart.
cluster_reload() {
    cluster_configure "$@"
    as_server_user "$PG_BIN/pg_ctl" -D "$RUN/$1/data" reload >/dev/null
}

cluster_log() { echo "$RUN/${1:-$CLUSTER}/log"; }

# cluster_psql [psql arguments…]: psql on the server in use, bare output, stopping at the first error.
cluster_psql() { "$PG_BIN/psql" -XqAt -v ON_ERROR_STOP=1 "$@"; }

# sql STATEMENT: its result, bare.
sql() { cluster_psql -c "$1"; }

# cluster_end NAME: stops a server for good; its data and log stay for inspection.
cluster_end() {
    cluster_crash "$1"
    local file=$RUN/$1/socket_directory
    [ ! -e "$file" ] || [ "$(cat "$file")" = "$RUN/$1" ] || rm -rf "$(cat "$file")"
    rm -f "$file"
}

# cluster_stop_all: stops every server this script started, at once.
cluster_stop_all() {
    local name
    for name in "${!CLUSTERS[@]}"; do
        cluster_end "$name"
    done
}
