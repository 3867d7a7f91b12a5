-- A random idempotency key of 32 hexadecimal digits at most, as a request id would be.
\set high random(1, 9223372036854775807)
\set low random(1, 9223372036854775807)
