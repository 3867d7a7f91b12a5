-- One hot tenant has all the traffic.
\set tenant 1001
