#include "extension/settings.hpp"

#include "extension/pg.hpp"

namespace pg_billing::settings {

bool database_workers;
int future_limit, late_limit;
int max_counters;
char *tenant_id;
int time_shift;

namespace {

int cache_interval, dedup_window, event_retention, missed_events_interval, notify_timeout, rollup_interval;
bool notify_private_addresses;
char *export_directory, *mail_from, *notify_ca_file, *sms_body, *sms_token_file, *sms_url,
    *smtp_password_file, *smtp_url, *smtp_user;
char *redis_password_file, *redis_prefix, *redis_url;
int outbox_retention, reconcile_interval, reconcile_reads, reconcile_settle;
int stripe_concurrency, stripe_rate, stripe_stream_rate, stripe_timeout, submit_interval, webhook_retention;
int late_usage;
char *stripe_api_base, *stripe_api_key_file, *stripe_api_version, *stripe_ca_file, *stripe_stream_base;

constexpr int kSecondsPerDay = 24 * 60 * 60;

// SQL reads the name.
const config_enum_entry kLatePolicies[] = {
    {"ignore", 0, false}, {"next_period", 1, false}, {"invoice_item", 2, false}, {nullptr, 0, false}};

}  // namespace

// In the order of their names.
void define() {
    DefineCustomIntVariable(
        "pg_billing.cache_interval", "Sets the time between updates of the quota cache in Redis.", nullptr,
        &cache_interval, 5, 1, kSecondsPerDay, PGC_SIGHUP, GUC_UNIT_S, nullptr, nullptr, nullptr);
    DefineCustomBoolVariable("pg_billing.database_workers",
                             "Starts background workers that roll up usage and submit it to Stripe.", nullptr,
                             &database_workers, true, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "pg_billing.dedup_window", "Sets how long idempotency keys are remembered at least.",
        "An event that is sent again later than that counts again. -1: for ever.", &dedup_window,
        35 * kSecondsPerDay, -1, PG_INT32_MAX, PGC_SUSET, GUC_UNIT_S, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "pg_billing.event_retention", "Sets how long usage events are kept at least.",
        "Whole days are dropped, once rolled up and submitted to Stripe. -1: kept for ever.",
        &event_retention, -1, -1, PG_INT32_MAX, PGC_SUSET, GUC_UNIT_S, nullptr, nullptr, nullptr);
    DefineCustomStringVariable(
        "pg_billing.export_directory", "Names the directory that usage is exported to as files.",
        "An absolute path that the server's user may write to. Empty: no files are written.",
        &export_directory, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.future_limit", "Sets how early an event may be.",
                            "A clock that runs ahead is forgiven this much.", &future_limit, 5 * 60, 0,
                            kSecondsPerDay, PGC_SIGHUP, GUC_UNIT_S, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.late_limit", "Sets how late an event may be.",
                            "Stripe accepts usage that is up to 35 days late.", &late_limit,
                            35 * kSecondsPerDay, 0, 35 * kSecondsPerDay, PGC_SIGHUP, GUC_UNIT_S, nullptr,
                            nullptr, nullptr);
    DefineCustomEnumVariable(
        "pg_billing.late_usage", "Says how usage is billed that comes after its period's invoice is final.",
        "With the next period, as an item of the next invoice, or not at all. A plan may say otherwise.",
        &late_usage, 0, kLatePolicies, PGC_SUSET, 0, nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.mail_from", "Sets who e-mails are from.",
                               "An address, or a name and an address in angle brackets.", &mail_from, "",
                               PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "pg_billing.max_counters",
        "Sets how many quota counters fit into shared memory (about 256 bytes each).",
        "One counter serves one tenant, metric and billing period; idle ones make room for others.",
        &max_counters, 20000, 16, 10000000, PGC_POSTMASTER, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.missed_events_interval",
                            "Sets how often Stripe is asked for events whose delivery failed.",
                            "Each time is three requests. -1: never.", &missed_events_interval, 60 * 60, -1,
                            PG_INT32_MAX, PGC_SUSET, GUC_UNIT_S, nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.notify_ca_file",
                               "Names a file of certificate authorities to trust instead of the system's, "
                               "for what notifications are sent to.",
                               nullptr, &notify_ca_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr,
                               nullptr);
    DefineCustomBoolVariable("pg_billing.notify_private_addresses",
                             "Lets tenants' webhooks go to private and local addresses.",
                             "The server would send requests into its own network for whoever names one.",
                             &notify_private_addresses, false, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.notify_timeout", "Sets how long one notification may take.", nullptr,
                            &notify_timeout, 15, 1, 600, PGC_SIGHUP, GUC_UNIT_S, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "pg_billing.outbox_retention",
        "Sets how long requests to Stripe, and the answers, are kept once they are settled.",
        "What has failed is kept until it is retried. -1: all is kept for ever.", &outbox_retention,
        90 * kSecondsPerDay, -1, PG_INT32_MAX, PGC_SUSET, GUC_UNIT_S, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "pg_billing.reconcile_interval", "Sets the time between reconciliations of all tenants with Stripe.",
        "Each is of the current and the previous billing period. 0: only those asked for.",
        &reconcile_interval, 0, 0, PG_INT32_MAX, PGC_SUSET, GUC_UNIT_S, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "pg_billing.reconcile_reads", "Sets how many reads of Stripe reconciliations may make in 24 hours.",
        "Stripe allows 500 for each transaction, and 10,000 a month at least. -1: without end.",
        &reconcile_reads, 300, -1, 1000000, PGC_SUSET, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable(
        "pg_billing.reconcile_settle", "Sets how old an hour has to be before it is compared with Stripe's.",
        "Stripe's summaries lag behind. A difference is looked at again after a twelfth of it.",
        &reconcile_settle, 60 * 60, 0, 35 * kSecondsPerDay, PGC_SUSET, GUC_UNIT_S, nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.redis_password_file",
                               "Names the file that holds the password of Redis.",
                               "The file is readable by the server's user alone.", &redis_password_file, "",
                               PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomStringVariable(
        "pg_billing.redis_prefix", "Sets what the names of all keys in Redis begin with.",
        "Databases that share a Redis need one each; gateways are told the same.", &redis_prefix,
        "q:", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomStringVariable(
        "pg_billing.redis_url", "Sets the URL of the Redis that holds the quota cache.",
        "redis://[user@]host[:port][/database], or unix:/path[?database]. Empty: there is no "
        "quota cache.",
        &redis_url, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.rollup_interval", "Sets the time between rollups.", nullptr,
                            &rollup_interval, 60, 1, kSecondsPerDay, PGC_SIGHUP, GUC_UNIT_S, nullptr, nullptr,
                            nullptr);
    DefineCustomStringVariable("pg_billing.sms_body",
                               "Sets the body of a request to the gateway for text messages.",
                               "JSON, or a form; {to}, {message} and {id} are filled in. Empty: a GET.",
                               &sms_body, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomStringVariable(
        "pg_billing.sms_token_file", "Names the file that holds the token of the gateway for text messages.",
        "Sent as a bearer token, or as user:password. The file is readable by the server's user alone.",
        &sms_token_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.sms_url", "Sets the URL of the gateway for text messages.",
                               "{to}, {message} and {id} are filled in. Empty: none are sent.", &sms_url, "",
                               PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.smtp_password_file",
                               "Names the file that holds the password of the mail server.",
                               "The file is readable by the server's user alone.", &smtp_password_file, "",
                               PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.smtp_url", "Sets the URL of the mail server.",
                               "smtp://host:587 (with STARTTLS), or smtps://host:465. Empty: no e-mails are "
                               "sent.",
                               &smtp_url, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.smtp_user", "Sets the user of the mail server.",
                               "Empty: without authentication.", &smtp_user, "", PGC_SIGHUP,
                               GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.stripe_api_base", "Sets the URL of Stripe's API.",
                               "Plain http is accepted for loopback addresses only.", &stripe_api_base,
                               "https://api.stripe.com", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr,
                               nullptr);
    DefineCustomStringVariable(
        "pg_billing.stripe_api_key_file", "Names the file that holds Stripe's API key.",
        "The file is readable by the server's user alone. Empty: nothing is sent to Stripe.",
        &stripe_api_key_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.stripe_api_version", "Sets the version of Stripe's API.", nullptr,
                               &stripe_api_version, "2026-10-28.endive", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
                               nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.stripe_ca_file",
                               "Names a file of certificate authorities to trust instead of the system's.",
                               nullptr, &stripe_ca_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr,
                               nullptr);
    DefineCustomIntVariable("pg_billing.stripe_concurrency",
                            "Sets how many requests to Stripe may be under way at once.", nullptr,
                            &stripe_concurrency, 32, 1, 1024, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.stripe_rate",
                            "Sets how many requests may be sent to Stripe in a second.",
                            "Less are sent for a while after Stripe answers that it is too much.",
                            &stripe_rate, 80, 1, 10000, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomStringVariable(
        "pg_billing.stripe_stream_base", "Sets the URL of Stripe's stream of meter events.",
        "Plain http is accepted for loopback addresses only.", &stripe_stream_base,
        "https://meter-events.stripe.com", PGC_SIGHUP, GUC_SUPERUSER_ONLY, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.stripe_stream_rate",
                            "Sets how many meter events may be sent to the stream in a second.",
                            "Less are sent for a while after Stripe answers that it is too much.",
                            &stripe_stream_rate, 10000, 1, 1000000, PGC_SIGHUP, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.stripe_timeout", "Sets how long one request to Stripe may take.",
                            nullptr, &stripe_timeout, 30, 1, 600, PGC_SIGHUP, GUC_UNIT_S, nullptr, nullptr,
                            nullptr);
    DefineCustomIntVariable("pg_billing.submit_interval", "Sets the time between submissions to Stripe.",
                            nullptr, &submit_interval, 300, 1, kSecondsPerDay, PGC_SIGHUP, GUC_UNIT_S,
                            nullptr, nullptr, nullptr);
    DefineCustomStringVariable("pg_billing.tenant_id", "Binds the session to a tenant.",
                               "A convenience for trusted pools: any SQL user can change it. Map roles in "
                               "billing.tenant_roles where it must hold.",
                               &tenant_id, "", PGC_USERSET, 0, nullptr, nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.time_shift", "Shifts the clock of billing.now(), for tests.", nullptr,
                            &time_shift, 0, PG_INT32_MIN, PG_INT32_MAX, PGC_SUSET, GUC_UNIT_S, nullptr,
                            nullptr, nullptr);
    DefineCustomIntVariable("pg_billing.webhook_retention",
                            "Sets how long the content of Stripe's webhooks is kept once it is processed.",
                            "What became of them is kept for 31 days at least. -1: all is kept for ever.",
                            &webhook_retention, 30 * kSecondsPerDay, -1, PG_INT32_MAX, PGC_SUSET, GUC_UNIT_S,
                            nullptr, nullptr, nullptr);
    MarkGUCPrefixReserved("pg_billing");
}

}  // namespace pg_billing::settings
