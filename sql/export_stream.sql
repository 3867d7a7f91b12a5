-- Mode delta_stream: deltas (export_deltas.sql) for Stripe's event stream, which takes up to 100 meter events in a request.
--
-- A row of stripe_outbox is one event, frozen as every request is, with its key as the identifier: so it is in doubt, looked
-- up, reported as not counted and settled by itself, whichever others it was sent with. The worker alone knows requests, and
-- sessions, whose token is nowhere else (worker/event_stream.hpp). The stream checks nothing before it answers: what is wrong
-- with an event comes as an error report (meter_errors.sql), and an identifier that Stripe has seen is not told at all.

-- Where the worker sends such rows, and by which it knows them.
CREATE FUNCTION billing._stripe_stream_path() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT '/v2/billing/meter_event_stream' $$;
