#include "extension/quantity.hpp"

namespace pg_billing {
namespace {

Datum datum(Numeric n) {
    return NumericGetDatum(n);
}
Numeric numeric(Datum d) {
    return DatumGetNumeric(d);
}

Numeric shift(Numeric quantity, int scale) {
    if (scale == 0)
        return quantity;
    return numeric(
        DirectFunctionCall2(numeric_mul, datum(quantity), datum(int64_to_numeric(power_of_ten(scale)))));
}

Numeric floor_of(Numeric n) {
    return numeric(DirectFunctionCall1(numeric_floor, datum(n)));
}

int compare(Numeric a, Numeric b) {
    return DatumGetInt32(DirectFunctionCall2(numeric_cmp, datum(a), datum(b)));
}

// The bounds of a quantity, made once.
Numeric largest, smallest;

void make_bounds() {
    if (smallest)
        return;
    const MemoryContext former = MemoryContextSwitchTo(TopMemoryContext);
    largest = int64_to_numeric(kMaxQuantity);
    smallest = int64_to_numeric(-kMaxQuantity);
    MemoryContextSwitchTo(former);
}

}  // namespace

int64 power_of_ten(int scale) {
    int64 power = 1;
    for (int i = 0; i < scale; i++)
        power *= 10;
    return power;
}

Scaling to_units(Numeric quantity, int scale, int64 *units) {
    if (numeric_is_nan(quantity) || numeric_is_inf(quantity))
        return Scaling::not_finite;
    const Numeric shifted = shift(quantity, scale);
    make_bounds();
    if (compare(shifted, largest) > 0 || compare(shifted, smallest) < 0)
        return Scaling::too_large;
    *units = DatumGetInt64(DirectFunctionCall1(numeric_int8, datum(shifted)));
    return compare(shifted, int64_to_numeric(*units)) == 0 ? Scaling::exact : Scaling::inexact;
}

int64 limit_to_units(Numeric limit, int scale) {
    const Numeric shifted = floor_of(shift(limit, scale));
    if (compare(shifted, int64_to_numeric(PG_INT64_MAX)) >= 0)
        return PG_INT64_MAX;
    return DatumGetInt64(DirectFunctionCall1(numeric_int8, datum(shifted)));
}

int64 total_to_units(Numeric total, int scale) {
    return DatumGetInt64(DirectFunctionCall1(numeric_int8, datum(shift(total, scale))));
}

Numeric from_units(int64 units, int scale) {
    if (scale == 0)
        return int64_to_numeric(units);
    return numeric(DirectFunctionCall1(numeric_trim_scale, datum(int64_div_fast_to_numeric(units, scale))));
}

}  // namespace pg_billing
