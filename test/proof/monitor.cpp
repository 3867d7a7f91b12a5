#include "test/proof/monitor.hpp"

#include "test/proof/world.hpp"

namespace pg_billing::proof {

using namespace std::chrono_literals;

namespace {

// Committed usage is read from the statement's snapshot, the counter after it. Neither is above the cap, no gauge below zero,
// and where usage only grows, the counter holds at least as much.
constexpr const char *kLook =
    "SELECT u.tenant, u.metric, u.committed, q.used, q.quota,"
    "       u.committed > q.quota OR q.used > q.quota OR u.committed < 0,"
    "       u.metric = 'api_calls' AND q.used < u.committed, u.metric = 'api_calls' AND q.remaining < 8, "
    "u.number"
    "  FROM (SELECT number, tenant, metric, billing.get_current_usage(tenant, metric) AS committed"
    "          FROM unnest($1::int[]) number, concat('tenant-', number) tenant,"
    "               unnest('{api_calls,storage_gb,user_seats}'::text[]) metric OFFSET 0) u,"
    "       LATERAL billing.check_quota(u.tenant, u.metric, 0) q";

constexpr const char *kQuota = "SELECT quota FROM billing.check_quota($1, $2, 0)";

}  // namespace

void Monitor::work() {
    db_.reconnect();
    while (run_.pause(20ms) && run_.enter()) {
        try {
            look();
        } catch (const Broken &) {
            db_.reconnect();
        } catch (const SqlError &e) {
            if (e.state != "UB051")  // no room for another counter
                run_.wrong(run_.totals.other, e.what());
            run_.totals.refused++;
            db_.reconnect();
        }
        run_.leave();
    }
}

// Rolls up, and looks at the hot tenants and, in turn, at some of the others.
void Monitor::look() {
    db_.query("SELECT billing.run_rollup()");
    const unsigned cold = run_.settings.tenants - kHotTenants;
    std::string tenants = "{";
    for (unsigned hot = 1; hot <= kHotTenants; hot++)
        tenants += std::to_string(hot) + ",";
    for (int i = 0; i < 4; i++)
        tenants += std::to_string(kHotTenants + 1 + next_cold_++ % cold) + (i < 3 ? "," : "}");
    for (const auto &row : db_.query(kLook, {tenants})) {
        const std::string what =
            row[0] + " used " + row[2] + " of " + row[4] + " " + row[1] + ", its counter says " + row[3];
        if (row[5] == "t")
            run_.wrong(run_.totals.overshoot, what);
        if (row[6] == "t")
            run_.wrong(run_.totals.drift, what);
        if (row[7] == "t")
            raise(static_cast<unsigned>(std::stoul(row[8])), std::stoi(row[4]));
    }
    run_.totals.looks++;
}

void Monitor::raise(unsigned tenant, int quota) {
    const std::string name = tenant_name(tenant);
    const int raised = quota + 5 + static_cast<int>(random_() % 40);
    db_.command("BEGIN");
    db_.query("SELECT billing.set_quota($1, $2, $3, 'hard')", {name, kCapped, std::to_string(raised)});
    if (db_.query(kQuota, {name, kCapped})[0][0] != std::to_string(raised))
        run_.wrong(run_.totals.other, "a raised quota is not in force in its own transaction");
    if (random_() % 2) {
        db_.command("ROLLBACK");
        return;
    }
    run_.quotas[tenant].highest = raised;
    db_.command("COMMIT");
    run_.quotas[tenant].lowest = raised;
}

}  // namespace pg_billing::proof
