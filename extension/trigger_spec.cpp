#include "extension/trigger_spec.hpp"

#include "extension/call.hpp"
#include "extension/sqlstate.hpp"

extern "C" {
#include "catalog/partition.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
}

namespace pg_billing {
namespace {

std::string qualified_name(Oid relation) {
    return pg_call([&] {
        return quote_qualified_identifier(get_namespace_name(get_rel_namespace(relation)),
                                          get_rel_name(relation));
    });
}

Failure made_wrongly(const TriggerData *data, const std::string &why, const std::string &hint) {
    return Failure(sqlstate::kInvalidArgument,
                   "quota trigger \"" + shown(data->tg_trigger->tgname) + "\" on " +
                       qualified_name(RelationGetRelid(data->tg_relation)) + " " + why,
                   hint);
}

// Rows that a BEFORE trigger sees may not come to be; statements tell their rows by transition tables alone.
void check_kind(const TriggerData *data) {
    const TriggerEvent event = data->tg_event;
    if (TRIGGER_FIRED_BY_TRUNCATE(event)) {
        if (!TRIGGER_FIRED_BEFORE(event))
            throw made_wrongly(data, "is AFTER TRUNCATE, when the rows are gone", "Make it BEFORE TRUNCATE.");
    } else if (!TRIGGER_FIRED_AFTER(event)) {
        throw made_wrongly(data, "is not AFTER the change, which may not come to be",
                           "Make it AFTER INSERT OR UPDATE OR DELETE … FOR EACH ROW.");
    } else if (TRIGGER_FIRED_FOR_STATEMENT(event)) {
        if (!TRIGGER_FIRED_BY_DELETE(event) && !data->tg_newtable)
            throw made_wrongly(
                data, "has no NEW TABLE to count the rows of",
                "Add REFERENCING NEW TABLE AS …, and OLD TABLE AS … for UPDATE, or make it FOR EACH ROW.");
        if (!TRIGGER_FIRED_BY_INSERT(event) && !data->tg_oldtable)
            throw made_wrongly(
                data, "has no OLD TABLE to count the rows of",
                "Add REFERENCING OLD TABLE AS …, and NEW TABLE AS … for UPDATE, or make it FOR EACH ROW.");
    }
}

AttrNumber column_number(const TriggerData *data, const char *name) {
    const int number = pg_call([&] { return SPI_fnumber(RelationGetDescr(data->tg_relation), name); });
    if (number <= 0)
        throw made_wrongly(
            data, "names a column \"" + shown(name) + "\" that the table does not have",
            "Its arguments are a metric, the column that names the tenant and, unless rows are counted, "
            "the column that holds the quantity.");
    return static_cast<AttrNumber>(number);
}

bool is_number(Oid type) {
    switch (type) {
        case INT2OID:
        case INT4OID:
        case INT8OID:
        case NUMERICOID:
        case FLOAT4OID:
        case FLOAT8OID:
            return true;
        default:
            return false;
    }
}

void find_output(const TriggerData *data, AttrNumber column, FmgrInfo *output, MemoryContext memory) {
    pg_call([&] {
        Oid function;
        bool is_varlena;
        getTypeOutputInfo(TupleDescAttr(RelationGetDescr(data->tg_relation), column - 1)->atttypid, &function,
                          &is_varlena);
        fmgr_info_cxt(function, output, memory);
    });
}

// {"table": "public.members"}: of a partition, the table it is of.
Datum origin(Oid relation) {
    if (pg_call([&] { return get_rel_relispartition(relation); }))
        relation = pg_call([&] { return llast_oid(get_partition_ancestors(relation)); });
    const std::string name = qualified_name(relation);
    return pg_call([&] {
        StringInfoData json;
        initStringInfo(&json);
        appendStringInfoString(&json, "{\"table\": ");
        escape_json(&json, name.c_str());
        appendStringInfoChar(&json, '}');
        return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
    });
}

TriggerSpec read_spec(const TriggerData *data, MemoryContext memory) {
    check_kind(data);
    const Trigger &trigger = *data->tg_trigger;
    if (trigger.tgnargs < 2 || trigger.tgnargs > 3)
        throw made_wrongly(
            data, "does not have two or three arguments",
            "Make it EXECUTE FUNCTION billing.enforce_quota('metric', 'tenant column'), with the name of a "
            "quantity column as a third argument unless rows are counted.");
    TriggerSpec spec{};
    spec.each_row = TRIGGER_FIRED_FOR_ROW(data->tg_event);
    spec.tenant = column_number(data, trigger.tgargs[1]);
    find_output(data, spec.tenant, &spec.tenant_output, memory);
    if (trigger.tgnargs == 3) {
        spec.quantity = column_number(data, trigger.tgargs[2]);
        const Oid type = TupleDescAttr(RelationGetDescr(data->tg_relation), spec.quantity - 1)->atttypid;
        if (!pg_call([&] { return is_number(getBaseType(type)); }))
            throw made_wrongly(data,
                               "sums column \"" + shown(trigger.tgargs[2]) + "\" of type " +
                                   pg_call([&] { return format_type_be(type); }) + ", which is no number",
                               "Name a column of an integer type, numeric, real or double precision.");
        find_output(data, spec.quantity, &spec.quantity_output, memory);
    }
    spec.metric = pg_call([&] { return CStringGetTextDatum(trigger.tgargs[0]); });
    spec.properties = origin(RelationGetRelid(data->tg_relation));
    return spec;
}

}  // namespace

TriggerSpec &trigger_spec(const TriggerData *data, FmgrInfo *function) {
    if (!function->fn_extra) {
        const MemoryContext before = MemoryContextSwitchTo(function->fn_mcxt);
        const TriggerSpec spec = read_spec(data, function->fn_mcxt);
        auto *kept = static_cast<TriggerSpec *>(pg_call([] { return palloc(sizeof(TriggerSpec)); }));
        MemoryContextSwitchTo(before);
        *kept = spec;
        function->fn_extra = kept;
    }
    return *static_cast<TriggerSpec *>(function->fn_extra);
}

}  // namespace pg_billing
