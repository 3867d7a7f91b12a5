#include "extension/ledger.hpp"

#include "extension/quantity.hpp"

extern "C" {
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
}

namespace pg_billing::ledger {
namespace {

Oid owner_of(Oid relation) {
    HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
    if (!HeapTupleIsValid(tuple))
        elog(ERROR, "cache lookup failed for relation %u", relation);
    const Oid owner = reinterpret_cast<Form_pg_class>(GETSTRUCT(tuple))->relowner;
    ReleaseSysCache(tuple);
    return owner;
}

// Acts as the owner of the tables until leave(); an ERROR in between is undone by the transaction's abort.
struct Identity {
    Oid user;
    int context, guc_level;
};

Identity enter(Oid user, int extra_context) {
    Identity saved;
    GetUserIdAndSecContext(&saved.user, &saved.context);
    saved.guc_level = NewGUCNestLevel();
    set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
                      0, false);
    SetUserIdAndSecContext(user, saved.context | extra_context);
    if (SPI_connect() != SPI_OK_CONNECT)
        elog(ERROR, "SPI_connect failed");
    return saved;
}

void leave(const Identity &saved) {
    SPI_finish();
    AtEOXact_GUC(false, saved.guc_level);
    SetUserIdAndSecContext(saved.user, saved.context);
}

Identity enter_as_owner() {
    return enter(owner_of(events_relation()), SECURITY_LOCAL_USERID_CHANGE | SECURITY_NOFORCE_RLS);
}

// A statement prepared once per backend; the plan cache keeps it valid.
class Statement {
  public:
    template <int N>
    constexpr Statement(const char *text, const Oid (&types)[N])
        : text_(text), types_(types), arguments_(N) {}

    uint64 write(const Datum *values, const char *nulls) {
        prepare();
        const int result = SPI_execute_plan(plan_, const_cast<Datum *>(values), nulls, false, 0);
        if (result < 0)
            elog(ERROR, "statement failed: %s", SPI_result_code_string(result));
        return SPI_processed;
    }

    uint64 read_latest(const Datum *values) {
        prepare();
        const Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
        const int result = SPI_execute_snapshot(plan_, const_cast<Datum *>(values), nullptr, snapshot,
                                                InvalidSnapshot, true, false, 0);
        UnregisterSnapshot(snapshot);
        if (result < 0)
            elog(ERROR, "statement failed: %s", SPI_result_code_string(result));
        return SPI_processed;
    }

  private:
    void prepare() {
        if (plan_)
            return;
        SPIPlanPtr plan = SPI_prepare(text_, arguments_, const_cast<Oid *>(types_));
        if (!plan || SPI_keepplan(plan) != 0)
            elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
        plan_ = plan;
    }

    const char *text_;
    const Oid *types_;
    int arguments_;
    SPIPlanPtr plan_ = nullptr;
};

constexpr Oid kQuotaTypes[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID};
Statement read_quota(
    "SELECT tenant IS NOT NULL, metric_name IS NOT NULL, kind = 'gauge', scale, refusal, quota, cap,"
    "       CASE cap WHEN 'hard' THEN quota WHEN 'soft' THEN quota * grace END,"
    "       lower(period), upper(period)"
    "  FROM billing._quota_in_force($1, $2, $3)",
    kQuotaTypes);

Statement read_used("SELECT billing._used($1, $2, $3)", kQuotaTypes);

constexpr Oid kKeyTypes[] = {TEXTOID, TEXTOID};
Statement read_key(
    "SELECT FROM billing.usage_event_keys k WHERE k.tenant_id = $1 AND k.key = billing._event_key($2)",
    kKeyTypes);

constexpr Oid kEventTypes[] = {TEXTOID,        TEXTOID,        NUMERICOID,     TEXTOID,
                               TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, JSONBOID};
#define PG_BILLING_WRITE_EVENT                                                                    \
    " event AS (INSERT INTO billing.usage_events (tenant_id, metric, quantity, idempotency_key, " \
    "occurred_at,"                                                                                \
    "                                             recorded_at, period_start, properties)"         \
    "           SELECT $1, $2, $3, $4, $5, $6, $7, $8 FROM key)"                                  \
    " INSERT INTO billing.usage_deltas (tenant_id, metric, quantity, hour, period_start)"         \
    " SELECT $1, $2, $3, date_trunc('hour', $5, 'UTC'), $7 FROM key"
Statement write_keyed_event(
    "WITH key AS (INSERT INTO billing.usage_event_keys (tenant_id, key, occurred_at)"
    "             VALUES ($1, billing._event_key($4), $5) ON CONFLICT DO NOTHING RETURNING "
    "1)," PG_BILLING_WRITE_EVENT,
    kEventTypes);
Statement write_plain_event("WITH key AS (SELECT 1)," PG_BILLING_WRITE_EVENT, kEventTypes);
#undef PG_BILLING_WRITE_EVENT

Datum column(int number, bool *is_null) {
    return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, number, is_null);
}

// Copies a column of the first row into memory that outlives the SPI connection; null for NULL.
const char *text_column(int number, MemoryContext memory) {
    bool is_null;
    const Datum value = column(number, &is_null);
    return is_null ? nullptr : MemoryContextStrdup(memory, TextDatumGetCString(value));
}

}  // namespace

Oid events_relation() {
    const Oid schema = get_namespace_oid("billing", true);
    return OidIsValid(schema) ? get_relname_relid("usage_events", schema) : InvalidOid;
}

Quota quota_in_force(Datum tenant, Datum metric, TimestampTz at) {
    const MemoryContext memory = CurrentMemoryContext;
    const Identity saved = enter_as_owner();
    const Datum values[] = {tenant, metric, TimestampTzGetDatum(at)};
    if (read_quota.read_latest(values) != 1)
        elog(ERROR, "the quota in force is not one row");
    Quota quota{};
    bool is_null;
    quota.tenant_known = DatumGetBool(column(1, &is_null));
    quota.metric_known = DatumGetBool(column(2, &is_null));
    if (quota.tenant_known && quota.metric_known) {
        quota.is_gauge = DatumGetBool(column(3, &is_null));
        quota.scale = DatumGetInt16(column(4, &is_null));
        quota.refusal = text_column(5, memory);
        const Datum limit = column(6, &is_null);
        if (!is_null) {
            const MemoryContext spi = MemoryContextSwitchTo(memory);
            quota.quota = DatumGetNumericCopy(limit);
            MemoryContextSwitchTo(spi);
        }
        quota.cap = text_column(7, memory);
        const Datum bound = column(8, &is_null);
        quota.limit = is_null ? PG_INT64_MAX : limit_to_units(DatumGetNumeric(bound), quota.scale);
        quota.period_start = DatumGetTimestampTz(column(9, &is_null));
        quota.period_end = DatumGetTimestampTz(column(10, &is_null));
    }
    leave(saved);
    return quota;
}

int64 total_used(Datum tenant, Datum metric, TimestampTz period_start, int scale) {
    const Identity saved = enter_as_owner();
    const Datum values[] = {tenant, metric, TimestampTzGetDatum(period_start)};
    if (read_used.read_latest(values) != 1)
        elog(ERROR, "the total used is not one row");
    bool is_null;
    const int64 used = total_to_units(DatumGetNumeric(column(1, &is_null)), scale);
    leave(saved);
    return used;
}

bool write_event(const Event &event) {
    const Identity saved = enter_as_owner();
    const Datum values[] = {event.tenant,
                            event.metric,
                            event.quantity,
                            event.key,
                            TimestampTzGetDatum(event.occurred_at),
                            TimestampTzGetDatum(event.recorded_at),
                            TimestampTzGetDatum(event.period_start),
                            event.properties};
    const char nulls[] = {' ', ' ', ' ', event.key ? ' ' : 'n', ' ', ' ', ' ', event.properties ? ' ' : 'n'};
    const uint64 written = (event.key ? write_keyed_event : write_plain_event).write(values, nulls);
    leave(saved);
    return written > 0;
}

bool key_known(Datum tenant, Datum key) {
    const Identity saved = enter_as_owner();
    const Datum values[] = {tenant, key};
    const bool known = read_key.read_latest(values) > 0;
    leave(saved);
    return known;
}

const char *tenant_of_caller() {
    const MemoryContext memory = CurrentMemoryContext;
    Oid user;
    int context;
    GetUserIdAndSecContext(&user, &context);
    const Identity saved = enter(user, 0);
    if (SPI_execute("SELECT billing.current_tenant()", true, 1) != SPI_OK_SELECT || SPI_processed != 1)
        elog(ERROR, "billing.current_tenant() is not one row");
    const char *tenant = text_column(1, memory);
    leave(saved);
    return tenant;
}

}  // namespace pg_billing::ledger
