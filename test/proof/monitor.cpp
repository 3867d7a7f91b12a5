#include "test/proof/monitor.hpp"

#include "test/proof/world.hpp"

namespace pg_billing::proof {

using namespace std::chrono_literals;

namespace {

// Committed usage is read from the statement's snapshot, the counter after it: the counter holds at least as much, and
// neither is above the cap.
constexpr const char *kLook =
    "SELECT u.tenant, u.metric, u.committed, q.used, q.quota, u.committed > q.quota OR q.used > q.quota,"
    "       u.metric = 'api_calls' AND q.used < u.committed, u.metric = 'api_calls' AND q.remaining < 8"
    "  FROM (SELECT tenant, metric, billing.get_current_usage(tenant, metric) AS committed"
    "          FROM unnest($1::text[]) tenant, unnest('{api_calls,storage_gb}'::text[]) metric OFFSET 0) u,"
    "       LATERAL billing.check_quota(u.tenant, u.metric, 0) q";

constexpr const char *kQuota = "SELECT quota FROM billing.check_quota($1, $2, 0)";

}  // namespace

void Monitor::work() {
    connect();
    while (run_.pause(20ms) && run_.enter()) {
        try {
            look();
        } catch (const Broken &) {
            connect();
        } catch (const SqlError &e) {
            // No room for another counter; or a rollup wrote beside the same quotas in another order.
            if (e.state != "UB051" && e.state != "40P01")
                run_.wrong(run_.totals.other, e.what());
            run_.totals.refused++;
            connect();
        }
        run_.leave();
    }
}

void Monitor::connect() {
    db_.reconnect();
    witness_.reconnect();
}

// Looks at the hot tenants and, in turn, at some of the others.
void Monitor::look() {
    const unsigned cold = run_.settings.tenants - kHotTenants;
    std::string tenants = "{";
    for (unsigned hot = 1; hot <= kHotTenants; hot++)
        tenants += tenant_name(hot) + ",";
    for (int i = 0; i < 4; i++)
        tenants += tenant_name(kHotTenants + 1 + next_cold_++ % cold) + (i < 3 ? "," : "}");
    for (const auto &row : db_.query(kLook, {tenants})) {
        const std::string what =
            row[0] + " used " + row[2] + " of " + row[4] + " " + row[1] + ", its counter says " + row[3];
        if (row[5] == "t")
            run_.wrong(run_.totals.overshoot, what);
        if (row[6] == "t")
            run_.wrong(run_.totals.drift, what);
        if (row[7] == "t")
            raise(row[0], std::stoi(row[4]));
    }
    run_.totals.looks++;
}

void Monitor::raise(const std::string &tenant, int quota) {
    const int raised = quota + 5 + static_cast<int>(random_() % 40);
    const bool keep = random_() % 2;
    expect(witness_, tenant, quota, "before it is raised");
    db_.command("BEGIN");
    db_.query("SELECT billing.set_quota($1, $2, $3, 'hard')", {tenant, kCapped, std::to_string(raised)});
    expect(db_, tenant, raised, "where it is raised");
    expect(witness_, tenant, quota, "while its raise is not committed");
    db_.command(keep ? "COMMIT" : "ROLLBACK");
    for (Connection *db : {&db_, &witness_})
        expect(*db, tenant, keep ? raised : quota,
               keep ? "after it was raised" : "after its raise was rolled back");
}

void Monitor::expect(Connection &db, const std::string &tenant, int quota, const char *when) {
    if (const std::string found = db.query(kQuota, {tenant, kCapped})[0][0]; found != std::to_string(quota))
        run_.wrong(run_.totals.other, "the quota of " + tenant + " is " + found + ", not " +
                                          std::to_string(quota) + ", " + when);
}

}  // namespace pg_billing::proof
