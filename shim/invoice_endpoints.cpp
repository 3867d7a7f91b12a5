#include <algorithm>

#include "shim/caller.hpp"
#include "shim/endpoints.hpp"
#include "shim/problem.hpp"
#include "shim/query.hpp"

namespace pg_billing::shim {

using boost::asio::awaitable;

namespace {

const std::string tenant = kTenant;

// An invoice's members, without the braces.
const std::string kInvoice =
    R"('id', i.invoice, 'number', i.number, 'status', i.status, 'billingReason', i.billing_reason,
    'currency', i.currency, 'subtotal', i.subtotal, 'totalTaxes', i.total_taxes, 'total', i.total,
    'amountDue', i.amount_due, 'amountPaid', i.amount_paid, 'amountRemaining', i.amount_remaining,
    'periodStart', i.period_start, 'periodEnd', i.period_end, 'dueDate', i.due_date, 'attemptCount', i.attempt_count,
    'nextPaymentAttempt', i.next_payment_attempt, 'automaticallyFinalizesAt', i.automatically_finalizes_at,
    'finalizedAt', i.finalized_at, 'lastFinalizationError', i.last_finalization_error,
    'hostedInvoiceUrl', i.hosted_invoice_url, 'createdAt', i.created_at, 'fetchedAt', i.fetched_at)";

// One invoice more than asked for tells whether there are others: it is the last one, or the first one of a page that ends
// before a given invoice.
const std::string kList = R"(
    SELECT json_build_object(
               'data', coalesce(json_agg(json_build_object()" +
                          kInvoice + R"() ORDER BY i.n)
                                    FILTER (WHERE CASE WHEN $3::text IS NULL THEN i.n <= $1::int ELSE i.n > i.found - $1::int END), '[]'),
               'hasMore', count(*) > $1::int)::text
      FROM (SELECT x.*, row_number() OVER () AS n, count(*) OVER () AS found
              FROM billing.get_invoices()" +
                          tenant + R"(, $1::int + 1, $2::text, $3::text) x) i)";

const std::string kOne = R"(
    SELECT json_build_object()" +
                         kInvoice + R"(, 'lines', (
               SELECT coalesce(json_agg(json_build_object('id', l.line, 'metric', l.metric, 'description', l.description,
                          'quantity', l.quantity, 'amount', l.amount, 'currency', l.currency,
                          'periodStart', l.period_start, 'periodEnd', l.period_end)), '[]')
                 FROM billing.get_invoice_lines()" +
                         tenant + R"(, $1::text) l))::text
      FROM billing.get_invoice()" +
                         tenant + ", $1::text) i";

// The lines of an invoice to come, and what they add up to. No row without lines.
std::string estimate(const std::string &members, const std::string &lines) {
    return R"(
    SELECT json_build_object('tenantId', )" +
           tenant + members + R"(, 'currency', min(l.currency), 'total', sum(l.amount),
               'lines', json_agg(json_build_object('kind', l.kind, 'metric', l.metric, 'tier', l.tier,
                            'description', l.description, 'quantity', l.quantity, 'unitAmount', l.unit_amount,
                            'amount', l.amount, 'currency', l.currency,
                            'periodStart', l.period_start, 'periodEnd', l.period_end)))::text
      FROM billing.)" +
           lines + " l HAVING count(*) > 0";
}

const std::string kUpcoming = estimate("", "get_upcoming_invoice(" + tenant + ")");
const std::string kPreview =
    estimate(", 'planTier', $1::text",
             "preview_subscription(" + tenant + ", $1::text, coalesce($2::text, 'create_prorations'))");

// Stripe's links expire after weeks; one that was fetched within the hour is handed out as it is.
const std::string kLinks = R"(
    SELECT i.invoice_pdf, i.fetched_at::text, (i.fetched_at > clock_timestamp() - interval '1 hour')::text, i.status,
           json_build_object('invoiceId', i.invoice, 'number', i.number, 'url', i.invoice_pdf, 'fetchedAt', i.fetched_at)::text
      FROM billing.get_invoice()" +
                           tenant + ", $1::text) i";
const std::string kRefresh = "SELECT billing.refresh_invoice(" + tenant + ", $1::text)";

constexpr char kScope[] = "subscription:read";

// One statement about an invoice, in a transaction of its own.
awaitable<Rows> ask(Database &database, const Call &call, const std::string &sql, std::string invoice) {
    std::vector<Statement> statements{begin_request(call, kScope)};
    statements.push_back({sql.c_str(), {std::move(invoice)}});
    co_return co_await database.run(std::move(statements));
}

awaitable<http::Response> get_invoices(Database &database, const Call &call) {
    std::vector<Statement> statements{begin_request(call, kScope)};
    const Query query(call.request, {"limit", "startingAfter", "endingBefore"});
    const auto after = query.text("startingAfter"), before = query.text("endingBefore");
    if (after && before)
        throw Problem(400, "invalid_value", "Give startingAfter or endingBefore, not both.", "endingBefore");
    statements.push_back({kList.c_str(), {query.integer("limit", 1, 100).value_or("20"), after, before}});
    try {
        const Rows rows = co_await database.run(std::move(statements));
        co_return json_response(200, rows.at(0).at(0).value());
    } catch (const PgFailure &failure) {
        if (failure.sqlstate != "UB064")
            throw;
        throw Problem(400, "invalid_value", failure.message, after ? "startingAfter" : "endingBefore");
    }
}

awaitable<http::Response> get_invoice(Database &database, const Call &call) {
    refuse_query(call.request);
    const Rows rows = co_await ask(database, call, kOne, call.captures.at(0));
    co_return json_response(200, rows.at(0).at(0).value());
}

awaitable<http::Response> get_upcoming(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call, kScope)};
    statements.push_back({kUpcoming.c_str(), {}});
    const Rows rows = co_await database.run(std::move(statements));
    if (rows.empty())
        throw Problem(404, "no_upcoming_invoice",
                      "Nothing is going to be invoiced: there is no subscription, or it is paused or ends.");
    co_return json_response(200, rows[0][0].value());
}

awaitable<http::Response> post_preview(Database &database, const Call &call) {
    refuse_query(call.request);
    std::vector<Statement> statements{begin_request(call, kScope)};
    const Json body = json_body(call.request);
    const Members members(body, {"planTier", "prorationBehavior"});
    statements.push_back(
        {kPreview.c_str(), {members.required_text("planTier"), members.text("prorationBehavior")}});
    const Rows rows = co_await database.run(std::move(statements));
    if (rows.empty())
        throw Problem(404, "no_upcoming_invoice",
                      "Nothing is going to be invoiced: the subscription is paused or ends.");
    co_return json_response(200, rows[0][0].value());
}

// Has an old link fetched anew, and waits for it.
awaitable<http::Response> get_pdf(Database &database, const Call &call, Patience patience) {
    enum Column { kUrl, kFetchedAt, kFresh, kStatus, kJson };
    refuse_query(call.request);
    const std::string id = call.captures.at(0);
    Row links = (co_await ask(database, call, kLinks, id)).at(0);
    bool fresh = links[kUrl] && links[kFresh] == "true";
    if (!fresh) {
        co_await ask(database, call, kRefresh, id);
        fresh = co_await wait_until(patience, [&]() -> awaitable<bool> {
            Row now = (co_await ask(database, call, kLinks, id)).at(0);
            const bool fetched = now[kFetchedAt] != links[kFetchedAt];
            if (fetched)
                links = std::move(now);
            co_return fetched;
        });
    }
    if (!fresh)
        throw Problem(503, "stripe_sync_timed_out",
                      "Stripe has not told the invoice's link in time; ask again.");
    if (!links[kUrl])
        throw Problem(409, "invoice_without_pdf",
                      "The invoice has no PDF: its status is " + links[kStatus].value() +
                          ", and a draft gets one when it is final.");
    co_return json_response(200, links[kJson].value());
}

}  // namespace

void add_invoice_endpoints(Router &router, Database &database, Patience patience) {
    const auto add = [&](const char *method, const char *pattern, auto endpoint) {
        router.add(method, pattern,
                   [&database, endpoint](const Call &call) { return endpoint(database, call); });
    };
    add("POST", "/api/billing/subscription/preview", post_preview);
    add("GET", "/api/billing/invoices", get_invoices);
    add("GET", "/api/billing/invoices/upcoming", get_upcoming);  // before :id, which would match, too
    add("GET", "/api/billing/invoices/:id", get_invoice);
    router.add("GET", "/api/billing/invoices/:id/pdf",
               [&database, patience](const Call &call) { return get_pdf(database, call, patience); });
}

}  // namespace pg_billing::shim
