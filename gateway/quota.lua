-- Decides at the edge whether a tenant may use so much of a metric, by the quota cache that pg_billing keeps in Redis, and
-- counts it there. To be run by Redis (EVAL, EVALSHA), in one step.
--
-- KEYS: prefix{tenant}:metric, prefix`dirty`, prefix`alive`, prefix`stats`. ARGV: the quantity; consume or check; how many
-- seconds old the cache may be (30).
--
-- Returns {verdict, reason, quota, remaining, resets_in}. The verdict is 1 (go on), 0 (denied) or -1: this cannot be decided
-- here (reason missing, stale, ended or inexact), ask pg_billing. Quota and remaining are in the metric's own unit, empty if
-- unlimited; resets_in is in seconds, empty for a level that never resets. Fields: worker/cache_scripts.hpp.

local function answer(verdict, reason, quota, remaining, resets)
    redis.call('HINCRBY', KEYS[4], verdict < 0 and 'misses' or 'hits', 1)
    if verdict == 0 then redis.call('HINCRBY', KEYS[4], 'denials', 1) end
    return {verdict, reason, quota or '', remaining or '', resets or ''}
end

local h = redis.call('HMGET', KEYS[1], 'u', 'd', 'f', 'q', 'l', 'm', 'r', 'e', 'z', 'x')
local now = tonumber(redis.call('TIME')[1])
local alive = tonumber(redis.call('GET', KEYS[3]) or 0)
if not h[1] then return answer(-1, 'missing') end
if now - alive > tonumber(ARGV[3] or 30) then return answer(-1, 'stale') end
local ends, resets = tonumber(h[8]), tonumber(h[9])
if ends >= 0 and now >= ends then return answer(-1, 'ended') end

local scale = 10 ^ tonumber(h[10])
local n = tonumber(ARGV[1]) and tonumber(ARGV[1]) * scale
if not n or n < 0 or n ~= math.floor(n) or n > 2 ^ 53 then return answer(-1, 'inexact') end
local quota, bound = tonumber(h[4]), tonumber(h[5])
local used = tonumber(h[1]) + tonumber(h[2] or 0) + tonumber(h[3] or 0)

local function number(units)
    if h[10] == '0' then return string.format('%.0f', units) end
    return string.format('%.' .. h[10] .. 'f', units / scale)
end
local function conclude(verdict, reason, used)
    return answer(verdict, reason, quota >= 0 and number(quota), quota >= 0 and number(math.max(quota - used, 0)),
                  resets >= 0 and string.format('%.0f', math.max(resets - now, 0)))
end

if h[7] ~= '' then return conclude(0, h[7], used) end
if bound >= 0 and used + n > bound then
    return conclude(0, h[6] == 'hard' and 'hard_cap' or 'upgrade_required', used)
end
if ARGV[2] == 'consume' and n > 0 then
    -- What is counted here is nowhere else until the worker takes it: the entry must not expire meanwhile.
    if not h[2] or h[2] == '0' then
        redis.call('PERSIST', KEYS[1])
        redis.call('SADD', KEYS[2], KEYS[1])
    end
    redis.call('HINCRBY', KEYS[1], 'd', string.format('%.0f', n))
end
used = used + n
local reason = 'within_quota'
if quota < 0 then reason = 'unlimited'
elseif used > quota then reason = h[6] == 'none' and 'overage' or 'soft_cap_exceeded' end
return conclude(1, reason, used)
