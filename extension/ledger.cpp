#include "extension/ledger.hpp"

#include <cstring>

#include "extension/event_key.hpp"
#include "extension/quantity.hpp"
#include "extension/statement.hpp"

extern "C" {
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
}

namespace pg_billing::ledger {
namespace {

// billing.usage_events, as long as no invalidation says that it may be another.
Oid events = InvalidOid;

void forget_events(Datum, Oid relation) {
    if (relation == events || !OidIsValid(relation))
        events = InvalidOid;
}

constexpr Oid kTermsTypes[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID};
Statement select_terms(
    "SELECT q.tenant IS NOT NULL, q.metric_name IS NOT NULL, q.kind = 'gauge', q.aggregation, q.scale, "
    "q.refusal, q.cap,"
    "       lower(q.valid), upper(q.valid), q.quota, q.bound, lower(q.period), upper(q.period),"
    "       w.per, w.quota, lower(w.span), upper(w.span)"
    "  FROM billing._quota_in_force($1, $2, $3) q"
    "  LEFT JOIN LATERAL billing._window_limits($1, $2, q.plan, q.timezone, $3) w ON true",
    kTermsTypes);

constexpr Oid kUsedTypes[] = {TEXTOID, TEXTOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
Statement select_used(
    "SELECT billing._used($1, $2, $3), billing._held($1, $2, $3)"
    " WHERE $4 IS NOT NULL",
    kUsedTypes);
Statement select_used_within(
    "SELECT billing._used_within($1, $2, $3, $4), billing._held_within($1, $2, $3, $4)", kUsedTypes);

Statement select_folded_before("SELECT folded_before FROM billing.rollup_state");

constexpr Oid kKeyTypes[] = {TEXTOID, TEXTOID};
Statement select_key(
    "SELECT FROM billing.usage_event_keys k WHERE k.tenant_id = $1 AND k.key = billing._event_key($2)",
    kKeyTypes);

constexpr Oid kInsertKeyTypes[] = {TEXTOID, UUIDOID, TIMESTAMPTZOID};
Statement insert_key(
    "INSERT INTO billing.usage_event_keys (tenant_id, key, tick) VALUES ($1, $2, $3)"
    " ON CONFLICT DO NOTHING",
    kInsertKeyTypes);

constexpr Oid kInsertEventTypes[] = {TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID, TEXTOID,
                                     TEXTOID,        NUMERICOID,     TEXTOID,        JSONBOID};
Statement insert_event(
    "INSERT INTO billing.usage_events (tick, occurred_at, recorded_at, period_start, tenant_id, metric, "
    "quantity,"
    "                                  idempotency_key, properties) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, "
    "$9)",
    kInsertEventTypes);

bool bool_column(int number) {
    bool is_null;
    return DatumGetBool(column(number, &is_null));
}

TimestampTz time_column(int number, uint64 row = 0) {
    bool is_null;
    return DatumGetTimestampTz(column(number, &is_null, row));
}

// INT64_MAX for NULL: no limit.
int64 limit_column(int number, int scale, uint64 row = 0) {
    bool is_null;
    const Datum value = column(number, &is_null, row);
    return is_null ? PG_INT64_MAX : limit_to_units(DatumGetNumeric(value), scale);
}

// Returns which of the names the column holds, as the enumeration counts them; 0 for NULL.
template <class Enum, int N>
Enum named_column(int number, const char *const (&names)[N]) {
    bool is_null;
    const Datum value = column(number, &is_null);
    if (is_null)
        return Enum{};
    const char *name = TextDatumGetCString(value);
    for (int i = 0; i < N; i++)
        if (strcmp(name, names[i]) == 0)
            return static_cast<Enum>(i);
    elog(ERROR, "unexpected value \"%s\"", name);
}

Datum text_datum(std::string_view text) {
    return PointerGetDatum(cstring_to_text_with_len(text.data(), static_cast<int>(text.size())));
}

}  // namespace

Oid events_relation() {
    if (!OidIsValid(events)) {
        const Oid schema = get_namespace_oid("billing", true);
        events = OidIsValid(schema) ? get_relname_relid("usage_events", schema) : InvalidOid;
    }
    return events;
}

void init() {
    CacheRegisterRelcacheCallback(forget_events, 0);
}

Terms read_terms(std::string_view tenant, std::string_view metric, TimestampTz at) {
    const Datum values[] = {text_datum(tenant), text_datum(metric), TimestampTzGetDatum(at)};
    const Identity saved = enter_as_owner();
    const uint64 rows = select_terms.read_latest(values);
    if (rows == 0 || rows > kMaxLimits)
        elog(ERROR, "the quota in force is not one row and its windows");
    Terms terms{};
    terms.tenant_known = bool_column(1);
    terms.metric_known = bool_column(2);
    if (terms.tenant_known && terms.metric_known) {
        terms.is_gauge = bool_column(3);
        terms.aggregation = named_column<Aggregation>(4, kAggregationNames);
        bool is_null;
        terms.scale = DatumGetInt16(column(5, &is_null));
        terms.refusal = named_column<Refusal>(6, kRefusalNames);
        terms.cap = named_column<Cap>(7, kCapNames);
        terms.valid_from = time_column(8);
        terms.valid_until = time_column(9);
        terms.limits[terms.limit_count++] = {Window::period,
                                             limit_column(10, terms.scale),
                                             limit_column(11, terms.scale),
                                             time_column(12),
                                             time_column(13),
                                             {}};
        for (uint64 row = 0; row < rows; row++) {
            const Datum per = column(14, &is_null, row);
            if (is_null)
                continue;
            const int64 quota = limit_column(15, terms.scale, row);
            const Window window = strcmp(TextDatumGetCString(per), "day") == 0 ? Window::day : Window::hour;
            const Limit limit{window, quota, quota, time_column(16, row), time_column(17, row), {}};
            terms.limits[terms.limit_count++] = limit;
            terms.valid_from = Max(terms.valid_from, limit.start);
            terms.valid_until = Min(terms.valid_until, limit.end);
        }
        if (terms.is_gauge)
            terms.limits[terms.limit_count++] = {Window::floor,      0, 0, terms.period().start,
                                                 terms.period().end, {}};
    }
    leave(saved);
    return terms;
}

Total total_used(std::string_view tenant, std::string_view metric, int scale, Window window,
                 TimestampTz start, TimestampTz end) {
    const Datum values[] = {text_datum(tenant), text_datum(metric), TimestampTzGetDatum(start),
                            TimestampTzGetDatum(end)};
    const Identity saved = enter_as_owner();
    const bool within = window == Window::hour || window == Window::day;
    Statement &statement = within ? select_used_within : select_used;
    if (statement.read_latest(values) != 1)
        elog(ERROR, "the total used is not one row");
    bool is_null;
    const int64 used = total_to_units(DatumGetNumeric(column(1, &is_null)), scale);
    const int64 held = total_to_units(DatumGetNumeric(column(2, &is_null)), scale);
    leave(saved);
    return window == Window::floor ? Total{-used, false} : Total{used + held, held > 0};
}

TimestampTz folded_before() {
    const Identity saved = enter_as_owner();
    if (select_folded_before.read_latest(nullptr) != 1)
        elog(ERROR, "the state of the rollup is not one row");
    const TimestampTz folded = time_column(1);
    leave(saved);
    return folded;
}

bool write_event(const Event &event) {
    const Identity saved = enter_as_owner();
    bool fresh = true;
    if (event.key) {
        const text *key = DatumGetTextPP(event.key);
        const pg_uuid_t stored = event_key({VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key)});
        const Datum values[] = {event.tenant, UUIDPGetDatum(&stored), TimestampTzGetDatum(event.tick)};
        fresh = insert_key.write(values, nullptr) > 0;
    }
    if (fresh) {
        const Datum values[] = {TimestampTzGetDatum(event.tick),
                                TimestampTzGetDatum(event.occurred_at),
                                TimestampTzGetDatum(event.recorded_at),
                                TimestampTzGetDatum(event.period_start),
                                event.tenant,
                                event.metric,
                                event.quantity,
                                event.key,
                                event.properties};
        const char nulls[] = {
            ' ', ' ', ' ', ' ', ' ', ' ', ' ', event.key ? ' ' : 'n', event.properties ? ' ' : 'n'};
        insert_event.write(values, nulls);
    }
    leave(saved);
    return fresh;
}

bool key_known(Datum tenant, Datum key) {
    const Identity saved = enter_as_owner();
    const Datum values[] = {tenant, key};
    const bool known = select_key.read_latest(values) > 0;
    leave(saved);
    return known;
}

const char *tenant_of_caller() {
    const MemoryContext memory = CurrentMemoryContext;
    Oid user;
    int context;
    GetUserIdAndSecContext(&user, &context);
    const Identity saved = enter(user, 0);
    const int guc_level = pin_search_path();
    if (SPI_execute("SELECT billing.current_tenant()", true, 1) != SPI_OK_SELECT || SPI_processed != 1)
        elog(ERROR, "billing.current_tenant() is not one row");
    bool is_null;
    const Datum value = column(1, &is_null);
    const char *tenant = is_null ? nullptr : MemoryContextStrdup(memory, TextDatumGetCString(value));
    AtEOXact_GUC(false, guc_level);
    leave(saved);
    return tenant;
}

}  // namespace pg_billing::ledger
