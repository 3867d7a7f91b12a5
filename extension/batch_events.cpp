#include "extension/batch_events.hpp"

#include "extension/iso_time.hpp"
#include "extension/sqlstate.hpp"
#include "extension/subtransaction.hpp"

extern "C" {
#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/jsonb.h"
}

namespace pg_billing {
namespace {

// Makes `count` events of now with quantity 1, for the caller to fill in. Plain calls into PostgreSQL, as all that
// follows but the two functions at the end.
Batch make_batch(const Call &call, int count) {
    auto *events = static_cast<BatchEvent *>(
        MemoryContextAllocHuge(CurrentMemoryContext, Max(count, 1) * sizeof(BatchEvent)));
    const Numeric one = int64_to_numeric(1);
    for (int i = 0; i < count; i++) {
        events[i] = {call, i + 1};
        events[i].call.quantity = one;
    }
    return {events, count};
}

void set(Datum *value, std::string_view *view, Datum given) {
    *value = PointerGetDatum(DatumGetTextPP(given));
    *view = text_view(*value);
}

void reject(BatchEvent &event, int sqlstate, const char *message) {
    if (!event.rejection)
        event.rejection = psprintf("%s: %s", unpack_sql_state(sqlstate), message);
}

// Returns the text that ->> would give, as a C string; null for null.
char *json_text(JsonbValue &value) {
    switch (value.type) {
        case jbvNull:
            return nullptr;
        case jbvString:
            return pnstrdup(value.val.string.val, value.val.string.len);
        case jbvNumeric:
            return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value.val.numeric)));
        case jbvBool:
            return pstrdup(value.val.boolean ? "true" : "false");
        case jbvBinary:
            return JsonbToCString(nullptr, value.val.binary.data, value.val.binary.len);
        default:
            elog(ERROR, "unexpected type of JSON value %d", static_cast<int>(value.type));
    }
}

void set(Datum *value, std::string_view *view, JsonbValue &json) {
    if (json.type == jbvString) {
        *value = PointerGetDatum(cstring_to_text_with_len(json.val.string.val, json.val.string.len));
        *view = text_view(*value);
    } else if (const char *shown = json_text(json)) {
        set(value, view, CStringGetTextDatum(shown));
    }
}

// Reads text as the type's input function does; what that cannot read is the event's rejection.
Datum read_text(PGFunction input, char *given, BatchEvent &event) {
    Datum value = 0;
    const ErrorData *error = in_subtransaction([&] {
        value = DirectFunctionCall3(input, CStringGetDatum(given), ObjectIdGetDatum(InvalidOid), -1);
    });
    if (!error)
        return value;
    if (ERRCODE_TO_CATEGORY(error->sqlerrcode) != ERRCODE_DATA_EXCEPTION)
        ReThrowError(const_cast<ErrorData *>(error));
    reject(event, error->sqlerrcode, error->message);
    return 0;
}

void set_quantity(JsonbValue &value, BatchEvent &event) {
    if (value.type == jbvNumeric)
        event.call.quantity = value.val.numeric;
    else if (char *given = json_text(value))
        if (const Datum quantity = read_text(numeric_in, given, event))
            event.call.quantity = DatumGetNumeric(quantity);
}

void set_occurred_at(JsonbValue &value, BatchEvent &event) {
    if (value.type == jbvString &&
        read_iso_time({value.val.string.val, static_cast<size_t>(value.val.string.len)},
                      &event.call.occurred_at))
        return;
    if (char *given = json_text(value)) {
        const Datum time = read_text(timestamptz_in, given, event);
        if (!event.rejection)
            event.call.occurred_at = DatumGetTimestampTz(time);
    }
}

void set_field(std::string_view name, JsonbValue &value, BatchEvent &event) {
    Call &call = event.call;
    if (name == "tenant_id")
        set(&call.tenant, &call.tenant_text, value);
    else if (name == "metric")
        set(&call.metric, &call.metric_text, value);
    else if (name == "quantity")
        set_quantity(value, event);
    else if (name == "idempotency_key")
        set(&call.key, &call.key_text, value);
    else if (name == "occurred_at")
        set_occurred_at(value, event);
    else if (name == "properties") {
        if (value.type != jbvNull)
            call.properties = JsonbPGetDatum(JsonbValueToJsonb(&value));
    } else {
        const int size = pg_mbcliplen(name.data(), static_cast<int>(name.size()), 64);
        reject(event, sqlstate::kMalformedEvent, psprintf("unknown field \"%.*s\"", size, name.data()));
    }
}

void read_json_event(JsonbValue &json, BatchEvent &event) {
    if (json.type != jbvBinary || !JsonContainerIsObject(json.val.binary.data)) {
        reject(event, sqlstate::kMalformedEvent, "event is not a JSON object");
        return;
    }
    JsonbIterator *fields = JsonbIteratorInit(json.val.binary.data);
    JsonbValue name, value;
    JsonbIteratorNext(&fields, &name, true);
    while (JsonbIteratorNext(&fields, &name, true) == WJB_KEY) {
        JsonbIteratorNext(&fields, &value, true);
        set_field({name.val.string.val, static_cast<size_t>(name.val.string.len)}, value, event);
    }
}

Batch read_json_events(const Call &call, Jsonb *events) {
    const Batch batch = make_batch(call, JB_ROOT_COUNT(events));
    JsonbIterator *elements = JsonbIteratorInit(&events->root);
    JsonbValue element;
    JsonbIteratorNext(&elements, &element, true);
    for (int i = 0; i < batch.count; i++) {
        JsonbIteratorNext(&elements, &element, true);
        read_json_event(element, batch.events[i]);
    }
    return batch;
}

// The arrays in the order of the arguments.
enum { tenant_ids, metrics, quantities, idempotency_keys, occurred_ats, properties, array_count };
constexpr struct {
    const char *name;
    Oid element;
    int length;
    bool by_value;
    char alignment;
} kArrays[array_count] = {
    {"tenant_ids", TEXTOID, -1, false, TYPALIGN_INT},
    {"metrics", TEXTOID, -1, false, TYPALIGN_INT},
    {"quantities", NUMERICOID, -1, false, TYPALIGN_INT},
    {"idempotency_keys", TEXTOID, -1, false, TYPALIGN_INT},
    {"occurred_ats", TIMESTAMPTZOID, sizeof(TimestampTz), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE},
    {"properties", JSONBOID, -1, false, TYPALIGN_INT}};

struct Elements {
    Datum *values;
    bool *nulls;
    int count, dimensions;

    bool has(int i) const { return values && !nulls[i]; }
};

Elements elements_of(ArrayType *array, int argument) {
    const auto &type = kArrays[argument];
    Elements elements{};
    elements.dimensions = ARR_NDIM(array);
    deconstruct_array(array, type.element, type.length, type.by_value, type.alignment, &elements.values,
                      &elements.nulls, &elements.count);
    return elements;
}

Batch read_elements(const Call &call, const Elements *arrays) {
    const Batch batch = make_batch(call, arrays[0].count);
    for (int i = 0; i < batch.count; i++) {
        Call &event = batch.events[i].call;
        if (arrays[tenant_ids].has(i))
            set(&event.tenant, &event.tenant_text, arrays[tenant_ids].values[i]);
        if (arrays[metrics].has(i))
            set(&event.metric, &event.metric_text, arrays[metrics].values[i]);
        if (arrays[quantities].has(i))
            event.quantity = DatumGetNumeric(arrays[quantities].values[i]);
        if (arrays[idempotency_keys].has(i))
            set(&event.key, &event.key_text, arrays[idempotency_keys].values[i]);
        if (arrays[occurred_ats].has(i))
            event.occurred_at = DatumGetTimestampTz(arrays[occurred_ats].values[i]);
        if (arrays[properties].has(i))
            event.properties = JsonbPGetDatum(DatumGetJsonbP(arrays[properties].values[i]));
    }
    return batch;
}

}  // namespace

Batch read_events_from_jsonb(FunctionCallInfo fcinfo) {
    const Call call = begin_call();
    Jsonb *events = PG_ARGISNULL(0) ? nullptr : pg_call([&] { return PG_GETARG_JSONB_P(0); });
    if (!events || !JB_ROOT_IS_ARRAY(events) || JB_ROOT_IS_SCALAR(events))
        throw Failure(sqlstate::kMalformedEvent, "events are not a JSON array",
                      "Give an array of objects, one per event.");
    return pg_call([&] { return read_json_events(call, events); });
}

Batch read_events_from_arrays(FunctionCallInfo fcinfo) {
    const Call call = begin_call();
    Elements arrays[array_count] = {};
    for (int i = 0; i < array_count; i++) {
        const std::string name = kArrays[i].name;
        if (PG_ARGISNULL(i)) {
            if (i == tenant_ids || i == metrics)
                throw Failure(sqlstate::kMalformedEvent, name + " is null",
                              "Name a tenant and a metric for each event.");
            continue;
        }
        arrays[i] = pg_call([&] { return elements_of(PG_GETARG_ARRAYTYPE_P(i), i); });
        if (arrays[i].dimensions > 1)
            throw Failure(sqlstate::kMalformedEvent,
                          name + " has " + std::to_string(arrays[i].dimensions) + " dimensions",
                          "Give arrays of one dimension.");
        if (arrays[i].count != arrays[tenant_ids].count)
            throw Failure(sqlstate::kMalformedEvent,
                          name + " has " + std::to_string(arrays[i].count) + " elements, tenant_ids has " +
                              std::to_string(arrays[tenant_ids].count),
                          "Give an element for each event; only an array as a whole may be left out.");
    }
    return pg_call([&] { return read_elements(call, arrays); });
}

}  // namespace pg_billing
