// Rows of a table, counted per tenant: what a trigger's firing adds to and takes from each, netted.
//
// Invariants:
//   - A row without a tenant counts for nobody; a null quantity counts nothing.
//   - A quantity that is negative or not finite is refused where it is added, and left out where it is taken: it was
//     never counted.
//   - Tenants come in the order of their names, so that whoever locks by tenant does so in one order.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "extension/trigger_spec.hpp"

extern "C" {
#include "utils/numeric.h"
#include "utils/tuplestore.h"
}

namespace pg_billing {

class Tally {
  public:
    explicit Tally(TriggerSpec &spec) : spec_(spec), memory_(CurrentMemoryContext) {}

    // Count a row, or all rows of a transition table, with that sign.
    void count(TupleTableSlot *slot, int sign);
    void count(Tuplestorestate *rows, TupleDesc type, int sign);

    // Counts all rows that the table holds as taken.
    void take_all(Relation table);

    // Calls f(tenant, sign, quantity) for each tenant whose net is not zero; the quantity itself is positive.
    template <class F>
    void each(F &&f) const {
        for (const auto &[tenant, net] : nets_)
            if (const Amount total = amount(net); total.sign != 0)
                f(std::string_view(tenant), total.sign, total.quantity);
    }

  private:
    struct Row {
        const char *tenant;  // null: none
        Numeric quantity;    // null: none
    };
    struct Net {
        int64 rows = 0;              // if rows are counted
        Numeric quantity = nullptr;  // else their sum; null: none yet
    };

    struct Amount {
        int sign;
        Numeric quantity;
    };

    Row read(Datum tenant, bool no_tenant, Datum quantity, bool no_quantity);
    Row read(TupleTableSlot *slot);
    void note(const Row &row, int sign);
    Amount amount(const Net &net) const;

    TriggerSpec &spec_;
    MemoryContext memory_;  // of the sums
    std::map<std::string, Net, std::less<>> nets_;
};

}  // namespace pg_billing
