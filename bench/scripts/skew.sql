-- Production skew: 1,000 tenants, the largest with 35 %, the rest falling off as Zipf's law has it. int() rounds.
\set tenant case when random(1, 100) <= 35 then 1001 else 1001 + int(pow(999.4, random(0, 999999) / 1000000.0)) end
