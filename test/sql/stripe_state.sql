-- Which database may submit to Stripe: none without a key, none that is a copy until adopt(), none that is paused.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT billing._stripe_ready();
CALL attempt($$SELECT billing.run_stripe_sync('1 second')$$);
ALTER SYSTEM SET pg_billing.stripe_api_key_file = '/nowhere/stripe.key';
SELECT pg_reload_conf();
\c -
SELECT billing._stripe_ready() IS NULL AS ready;
SELECT billing.create_customer('acme', 'Acme', 'a@a.example');
SELECT billing.create_customer('bolt', 'Bolt', 'b@b.example', stripe => false);
SELECT tenant_id, stripe FROM billing.billing_customers ORDER BY 1;
-- workers are off in this server
CALL attempt($$SELECT billing.run_stripe_sync('1 second')$$);
-- a copy differs in the server's identity or in the database's
UPDATE billing.stripe_state SET database_oid = 1;
SELECT billing._stripe_ready();
CALL attempt($$SELECT billing.run_stripe_sync('1 second')$$);
SELECT billing.adopt();
SELECT billing._stripe_ready() IS NULL AS ready;
UPDATE billing.stripe_state SET system_identifier = 1;
SELECT billing._stripe_ready();
SELECT billing.adopt();
SELECT billing._stripe_ready() IS NULL AS ready;
-- installing once more is not adopting
UPDATE billing.stripe_state SET database_oid = 1 RETURNING installation \gset
SELECT FROM billing.install() \g /dev/null
SELECT billing._stripe_ready(), installation = :'installation' AS same FROM billing.stripe_state;
SELECT billing.adopt();
-- paused by the worker; the reason stays until somebody resumes
SELECT billing._stripe_pause('Stripe refused the API key');
SELECT billing._stripe_ready();
SELECT billing.adopt();
SELECT billing._stripe_ready();
CALL attempt($$SELECT billing.run_stripe_sync('1 second')$$);
SELECT billing.resume_stripe();
SELECT billing._stripe_ready() IS NULL AS ready;
-- a key of the other mode: unless nothing has been made yet, where nothing is known of what was
CREATE FUNCTION mode_of_key(live boolean) RETURNS TABLE (livemode boolean, reason text) LANGUAGE sql AS
    'SELECT billing._stripe_note_mode(live); SELECT s.livemode, billing._stripe_ready() FROM billing.stripe_state s';
SELECT * FROM mode_of_key(NULL);
SELECT * FROM mode_of_key(false);
SELECT * FROM mode_of_key(true);
UPDATE billing.billing_customers SET stripe_customer_id = 'cus_1' WHERE tenant_id = 'acme';
SELECT * FROM mode_of_key(true);
SELECT * FROM mode_of_key(NULL);
SELECT * FROM mode_of_key(false);
-- resumed without the key put back, it is paused at once again
SELECT billing.resume_stripe();
SELECT * FROM mode_of_key(false);
SELECT billing.resume_stripe();
SELECT * FROM mode_of_key(true);
ALTER SYSTEM RESET pg_billing.stripe_api_key_file;
SELECT pg_reload_conf();
\c -
SELECT billing._stripe_ready();
