-- enforce_quota(): rows of a table, or a column's sum, against each tenant's quota, whatever statement changes them.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
SELECT FROM unnest(ARRAY['acme', 'bolt']) t, billing.create_subscription(t, 'free') \g /dev/null
CREATE VIEW seats AS
    SELECT t AS tenant, (billing.check_quota(t, 'user_seats', 0)).used AS counter, billing.get_current_usage(t, 'user_seats') AS events
      FROM unnest(ARRAY['acme', 'bolt']) t;

-- rows, row by row; the free plan has three seats
CREATE TABLE members (id int PRIMARY KEY, org text, name text);
CREATE TRIGGER seats AFTER INSERT OR UPDATE OR DELETE ON members
    FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
CREATE TRIGGER seats_truncated BEFORE TRUNCATE ON members
    EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
INSERT INTO members VALUES (1, 'acme', 'a'), (2, 'acme', 'b'), (3, 'bolt', 'c');
SELECT * FROM seats;
SELECT tenant_id, metric, quantity, occurred_at = recorded_at AS now, period_start, idempotency_key, properties
  FROM billing.usage_events ORDER BY 1, 3;
INSERT INTO members VALUES (4, 'acme', 'd'), (5, 'acme', 'e');
SELECT * FROM seats;
CALL attempt($$INSERT INTO members VALUES (4, 'acme', 'd'), (5, 'acme', 'e')$$);
INSERT INTO members VALUES (4, 'acme', 'd');
DELETE FROM members WHERE id = 2;
SELECT * FROM seats;
COPY members FROM STDIN (DELIMITER ' ');
2 acme b
\.
COPY members FROM STDIN (DELIMITER ' ');
5 bolt e
6 acme f
\.
SELECT * FROM seats;
-- an update of something else needs no room; one of the tenant moves
UPDATE members SET name = name || name;
SELECT count(*) FROM billing.usage_events;
CALL attempt($$UPDATE members SET org = 'acme' WHERE id = 3$$);
UPDATE members SET org = 'bolt' WHERE id = 1;
SELECT * FROM seats;
-- what a transaction frees it may use; a rollback gives back
BEGIN;
INSERT INTO members VALUES (7, 'acme', 'g');
SAVEPOINT one;
DELETE FROM members WHERE id = 2;
INSERT INTO members VALUES (8, 'acme', 'h');
INSERT INTO members VALUES (9, 'acme', 'i');
ROLLBACK TO one;
SELECT * FROM seats;
ROLLBACK;
SELECT * FROM seats;
-- upserts and merges count what they come to
INSERT INTO members VALUES (1, 'bolt', 'a'), (7, 'bolt', 'g') ON CONFLICT DO NOTHING;
SELECT * FROM seats;
CALL attempt($$INSERT INTO members VALUES (1, 'bolt', 'a'), (8, 'bolt', 'h') ON CONFLICT DO NOTHING$$);
INSERT INTO members VALUES (1, 'acme', 'a'), (3, 'bolt', 'c') ON CONFLICT (id) DO UPDATE SET org = excluded.org;
SELECT * FROM seats;
MERGE INTO members m USING (VALUES (1, 'bolt'), (8, 'acme'), (3, NULL)) v (id, org) ON m.id = v.id
 WHEN MATCHED AND v.org IS NULL THEN DELETE WHEN MATCHED THEN UPDATE SET org = v.org
 WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.org, 'h');
SELECT * FROM seats;
-- rows of no tenant count for nobody
INSERT INTO members VALUES (10, NULL, 'j');
UPDATE members SET org = NULL WHERE id = 8;
SELECT * FROM seats;
UPDATE members SET org = 'acme' WHERE id IN (8, 10);
CALL attempt($$UPDATE members SET org = NULL; UPDATE members SET org = 'acme'$$);
SELECT * FROM seats;
TRUNCATE members;
SELECT * FROM seats;
BEGIN;
INSERT INTO members VALUES (1, 'acme', 'a'), (2, 'acme', 'b');
TRUNCATE members;
INSERT INTO members VALUES (1, 'acme', 'a'), (2, 'acme', 'b'), (3, 'acme', 'b');
INSERT INTO members VALUES (4, 'acme', 'a');
ROLLBACK;
SELECT * FROM seats;
-- a deferred trigger counts at commit
DROP TRIGGER seats ON members;
CREATE CONSTRAINT TRIGGER seats AFTER INSERT OR UPDATE OR DELETE ON members DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
BEGIN;
INSERT INTO members SELECT n, 'acme', n FROM generate_series(1, 4) n;
SELECT * FROM seats;
COMMIT;
SELECT * FROM seats;
BEGIN;
INSERT INTO members SELECT n, 'acme', n FROM generate_series(1, 3) n;
COMMIT;
SELECT * FROM seats;
-- replication applies what was counted where it came from
SET session_replication_role = replica;
DELETE FROM members WHERE id = 3;
RESET session_replication_role;
SELECT * FROM seats;

-- anybody who may write the table is counted, whatever else he may; whoever made the trigger decided that
CREATE ROLE regress_clerk;
CREATE ROLE regress_owner;
ALTER TABLE members OWNER TO regress_owner;
GRANT INSERT, DELETE, TRUNCATE ON members TO regress_clerk;
ALTER TABLE members ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY all_new ON members FOR INSERT WITH CHECK (true);
SET ROLE regress_clerk;
INSERT INTO members VALUES (4, 'bolt', 'd');
CALL attempt($$SELECT billing.record_usage('bolt', 'user_seats')$$);
CREATE TEMP TABLE own (org text);
CALL attempt($$CREATE TRIGGER seats AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org')$$);
RESET ROLE;
SELECT * FROM seats;
SET ROLE regress_clerk;
TRUNCATE members;
RESET ROLE;
SELECT * FROM seats;
DROP TABLE own;
GRANT billing_app TO regress_clerk;
SET ROLE regress_clerk;
SET pg_billing.tenant_id = 'acme';
CREATE TEMP TABLE own (org text);
CREATE TRIGGER seats AFTER INSERT ON own FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
INSERT INTO own VALUES ('bolt');
RESET pg_billing.tenant_id;
RESET ROLE;
SELECT * FROM seats;
DROP TABLE own;
DROP OWNED BY regress_clerk;
DROP TABLE members;
DROP ROLE regress_clerk, regress_owner;

-- a table that had rows before its trigger can be emptied: a level goes no lower than zero
CREATE TABLE "Old ""members" (id int, "Org" uuid);
INSERT INTO "Old ""members" SELECT n, '5ca1ab1e-0000-4000-8000-00000000000a' FROM generate_series(1, 5) n;
SELECT FROM billing.create_customer('5ca1ab1e-0000-4000-8000-00000000000a', 'U', 'u@u.example', stripe => false) \g /dev/null
SELECT FROM billing.create_subscription('5ca1ab1e-0000-4000-8000-00000000000a', 'free') \g /dev/null
CREATE TRIGGER seats AFTER INSERT OR UPDATE OR DELETE ON "Old ""members"
    FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('user_seats', 'Org');
CREATE TRIGGER seats_truncated BEFORE TRUNCATE ON "Old ""members"
    EXECUTE FUNCTION billing.enforce_quota('user_seats', 'Org');
DELETE FROM "Old ""members" WHERE id = 1;
INSERT INTO "Old ""members" VALUES (6, '5ca1ab1e-0000-4000-8000-00000000000a');
DELETE FROM "Old ""members" WHERE id < 4;
SELECT (billing.check_quota('5ca1ab1e-0000-4000-8000-00000000000a', 'user_seats')).used;
INSERT INTO "Old ""members" SELECT n, '5ca1ab1e-0000-4000-8000-00000000000a' FROM generate_series(7, 9) n;
CALL attempt($$INSERT INTO "Old ""members" VALUES (10, '5ca1ab1e-0000-4000-8000-00000000000a')$$);
TRUNCATE "Old ""members";
SELECT (billing.check_quota('5ca1ab1e-0000-4000-8000-00000000000a', 'user_seats')).used;
SELECT quantity, properties FROM billing.usage_events WHERE properties ->> 'table' ~ 'Old';
-- rows of a tenant that nobody knows were never counted; they can be deleted, and given to one that is known
BEGIN;
SET LOCAL session_replication_role = replica;
INSERT INTO "Old ""members" SELECT n, 'badc0de0-0000-4000-8000-00000000000b' FROM generate_series(1, 3) n;
COMMIT;
CALL attempt($$INSERT INTO "Old ""members" VALUES (4, 'badc0de0-0000-4000-8000-00000000000b')$$);
CALL attempt($$UPDATE "Old ""members" SET "Org" = 'badc0de0-0000-4000-8000-00000000000c' WHERE id = 1$$);
DELETE FROM "Old ""members" WHERE id = 1;
UPDATE "Old ""members" SET "Org" = '5ca1ab1e-0000-4000-8000-00000000000a' WHERE id = 2;
TRUNCATE "Old ""members";
SELECT (billing.check_quota('5ca1ab1e-0000-4000-8000-00000000000a', 'user_seats')).used;

-- what the quota is decides: a soft cap up to its grace, an end of the subscription at once; freeing is never refused
CREATE TABLE seats_of (org text);
CREATE TRIGGER seats AFTER INSERT OR UPDATE OR DELETE ON seats_of
    FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
SELECT FROM billing.set_quota('bolt', 'user_seats', 5, 'soft', 1.6) \g /dev/null
INSERT INTO seats_of SELECT 'bolt' FROM generate_series(1, 7);
CALL attempt($$INSERT INTO seats_of VALUES ('bolt')$$);
SELECT FROM billing.clear_quota('bolt', 'user_seats') \g /dev/null
CALL attempt($$INSERT INTO seats_of VALUES ('bolt')$$);
UPDATE billing.subscriptions SET status = 'unpaid' WHERE tenant_id = 'bolt';
DELETE FROM seats_of WHERE ctid IN (SELECT ctid FROM seats_of LIMIT 5);
CALL attempt($$INSERT INTO seats_of VALUES ('bolt')$$);
SELECT billing.get_current_usage('bolt', 'user_seats');
