-- enforce_quota() as a statement's trigger, which records one event per tenant; and on partitioned tables.
\getenv tests PG_ABS_SRCDIR
\set begin :tests /lib/regress.sql
\i :begin
SELECT FROM unnest(ARRAY['1', '2']) t, billing.create_customer(t, t, 'a@a.example', stripe => false) \g /dev/null
SELECT FROM unnest(ARRAY['1', '2']) t, billing.create_subscription(t, 'free') \g /dev/null
CREATE VIEW seats AS
    SELECT t AS tenant, (billing.check_quota(t, 'user_seats', 0)).used AS counter, billing.get_current_usage(t, 'user_seats') AS events
      FROM unnest(ARRAY['1', '2']) t;
-- What was recorded since the last look.
CREATE TABLE seen (n bigint);
INSERT INTO seen VALUES (0);
CREATE FUNCTION recorded(OUT tenant text, OUT quantity numeric) RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT e.tenant_id, e.quantity FROM billing.usage_events e ORDER BY e.tick, e.ctid OFFSET (SELECT n FROM seen);
    UPDATE seen SET n = (SELECT count(*) FROM billing.usage_events);
END $$;

CREATE TABLE members (id int PRIMARY KEY, org bigint);
CREATE TRIGGER added AFTER INSERT ON members REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
CREATE TRIGGER removed AFTER DELETE ON members REFERENCING OLD TABLE AS removed
    FOR EACH STATEMENT EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
CREATE TRIGGER changed AFTER UPDATE ON members REFERENCING OLD TABLE AS removed NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
CREATE TRIGGER truncated BEFORE TRUNCATE ON members
    FOR EACH STATEMENT EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
COPY members FROM STDIN (DELIMITER ' ');
2 2
1 1
3 1
4 \N
\.
SELECT * FROM recorded();
COPY members FROM STDIN (DELIMITER ' ');
5 2
6 1
7 1
\.
SELECT * FROM seats;
INSERT INTO members VALUES (5, 2), (6, 1), (7, 2);
SELECT * FROM recorded();
-- an update that swaps needs no room; one that comes to more does
UPDATE members SET org = 3 - org;
SELECT * FROM recorded();
CALL attempt('UPDATE members SET org = 1 WHERE id IN (1, 3)');
UPDATE members SET org = CASE id WHEN 1 THEN 1 ELSE 2 END WHERE id IN (1, 2);
SELECT * FROM recorded();
DELETE FROM members WHERE id > 5;
DELETE FROM members WHERE false;
SELECT * FROM recorded();
SELECT * FROM seats;
UPDATE members SET org = 1 WHERE id = 2;
SELECT * FROM recorded();
INSERT INTO members VALUES (1, 2), (9, 1), (10, 2) ON CONFLICT (id) DO UPDATE SET org = excluded.org;
SELECT * FROM recorded();
CALL attempt('INSERT INTO members VALUES (1, 2), (11, 2) ON CONFLICT (id) DO UPDATE SET org = excluded.org');
WITH moved AS (DELETE FROM members WHERE id = 9 RETURNING *) INSERT INTO members SELECT 12, 1 FROM moved;
SELECT * FROM recorded();
SELECT * FROM seats;
BEGIN;
TRUNCATE members;
SELECT * FROM recorded();
ROLLBACK;
SELECT * FROM seats;
-- a great many rows of a great many tenants
SELECT FROM generate_series(1001, 1500) t, billing.create_customer(t::text, 'T', 't@t.example', stripe => false) \g /dev/null
SELECT FROM generate_series(1001, 1500) t, billing.set_quota(t::text, 'user_seats', 40) \g /dev/null
INSERT INTO members SELECT n, 1001 + n % 500 FROM generate_series(1000, 20999) n;
SELECT count(*), min(quantity), max(quantity) FROM recorded();
CALL attempt('INSERT INTO members VALUES (0, 1234)');
UPDATE members SET org = 1001 + (org + 1) % 500 WHERE id >= 1000;
SELECT count(*) FROM recorded();
DELETE FROM members WHERE id BETWEEN 1000 AND 1099;
SELECT quantity, count(*) FROM recorded() GROUP BY 1 ORDER BY 1;
TRUNCATE members;
SELECT count(*), sum(quantity) FROM recorded();
SELECT count(*), sum(used) FROM generate_series(1001, 1500) t, billing.check_quota(t::text, 'user_seats', 0);
DROP TABLE members;

-- partitions: a row that moves between them needs no room, whatever triggers there are
CREATE TABLE parts (id int, org text, region int) PARTITION BY LIST (region);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
CREATE TABLE parts_2 (region int, filler text, org text, id int);
ALTER TABLE parts_2 DROP COLUMN filler;
ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES IN (2);
CREATE TRIGGER seats AFTER INSERT OR UPDATE OR DELETE ON parts
    FOR EACH ROW EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
CREATE TRIGGER truncated BEFORE TRUNCATE ON parts
    FOR EACH STATEMENT EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
INSERT INTO parts VALUES (1, '1', 1), (2, '1', 2), (3, '1', 2), (4, '2', 2);
SELECT * FROM seats;
UPDATE parts SET region = 3 - region;
SELECT * FROM seats;
CALL attempt($$UPDATE parts SET region = 3 - region, org = '1' WHERE id = 4$$);
UPDATE parts SET region = 3 - region, org = '2' WHERE id = 3;
INSERT INTO parts_1 VALUES (5, '2', 1);
CALL attempt($$INSERT INTO parts_1 VALUES (6, '2', 1)$$);
SELECT * FROM seats;
SELECT properties, count(*) FROM billing.usage_events WHERE properties ->> 'table' ~ 'parts' GROUP BY 1;
-- also above a quota that was lowered
SELECT FROM billing.set_quota('1', 'user_seats', 1) \g /dev/null
UPDATE parts SET region = 3 - region;
CALL attempt($$INSERT INTO parts VALUES (6, '1', 1)$$);
SELECT * FROM seats;
TRUNCATE parts;
SELECT * FROM seats;
DROP TRIGGER seats ON parts;
SELECT count(*) FROM recorded();
CREATE TRIGGER added AFTER INSERT ON parts REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
CREATE TRIGGER changed AFTER UPDATE ON parts REFERENCING OLD TABLE AS removed NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION billing.enforce_quota('user_seats', 'org');
INSERT INTO parts VALUES (1, '1', 1), (2, '2', 2), (3, '2', 2), (4, '2', 2);
UPDATE parts SET region = 3 - region;
SELECT * FROM recorded();
UPDATE parts SET region = 3 - region, org = CASE id WHEN 1 THEN '2' WHEN 2 THEN '1' ELSE org END;
SELECT * FROM recorded();
SELECT * FROM seats;
