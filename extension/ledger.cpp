#include "extension/ledger.hpp"

#include <cstring>

#include "extension/quantity.hpp"
#include "extension/statement.hpp"

extern "C" {
#include "catalog/pg_type.h"
}

namespace pg_billing::ledger {
namespace {

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
