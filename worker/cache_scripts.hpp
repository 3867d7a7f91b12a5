// What the cache worker has Redis do in one step. An entry is a hash, prefix{tenant}:metric, with the fields
//
//   T M tenant, metric          x  decimals: quantities are in units of the smallest
//   u   used, as PostgreSQL has it          q  quota, l  what usage may not pass (-1: nothing)
//   d   let through at the edge since       f, fi  of that, what is being drained, and under which id
//   m   cap                     r  why nothing is allowed (empty: it is)
//   p   period                  e  until when this holds, z  when the period is over (seconds; -1: for ever)
//   v   version
//
// Gateways use gateway/quota.lua on it, which adds to d and notes the entry in prefix`dirty`. What is in d or f is in
// PostgreSQL not yet, so an entry with any is never left to expire.
#pragma once

namespace pg_billing::cache_scripts {

// KEYS: entry, dirty. ARGV: an id for what is taken. Returns T, M, f, x, fi, z of what has to be recorded: what an earlier run
// has taken and not finished under its id, else what there is under the new one; nothing if there is none.
inline constexpr const char *kTake = R"lua(
local h = redis.call('HMGET', KEYS[1], 'f', 'd')
if not h[1] then
    if not h[2] or h[2] == '0' then
        redis.call('SREM', KEYS[2], KEYS[1])
        return false
    end
    redis.call('HSET', KEYS[1], 'f', h[2], 'fi', ARGV[1], 'd', '0')
end
return redis.call('HMGET', KEYS[1], 'T', 'M', 'f', 'x', 'fi', 'z')
)lua";

// KEYS: entry. ARGV: version, whether to make one that is not there, the id of what is recorded by now (or empty), seconds to
// live beyond the period, then T M x u q l m r p e z. Writes the entry and returns 1; 0: a newer one stands, or there is none; 2: it
// has usage of another period or scale, which has to be drained first.
inline constexpr const char *kPut = R"lua(
local h = redis.call('HMGET', KEYS[1], 'v', 'fi', 'd', 'f', 'p', 'x')
if h[1] and tonumber(h[1]) >= tonumber(ARGV[1]) then return 0 end
if not h[1] and ARGV[2] == '0' then return 0 end
local taken = h[4]
if h[2] and h[2] == ARGV[3] then
    redis.call('HDEL', KEYS[1], 'f', 'fi')
    taken = false
end
local pending = taken or (h[3] and h[3] ~= '0')
if pending and (h[5] ~= ARGV[13] or h[6] ~= ARGV[7]) then return 2 end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'T', ARGV[5], 'M', ARGV[6], 'x', ARGV[7], 'u', ARGV[8], 'q', ARGV[9],
           'l', ARGV[10], 'm', ARGV[11], 'r', ARGV[12], 'p', ARGV[13], 'e', ARGV[14], 'z', ARGV[15])
if pending then
    redis.call('PERSIST', KEYS[1])
elseif ARGV[15] == '-1' then
    redis.call('EXPIRE', KEYS[1], ARGV[4])
else
    redis.call('EXPIREAT', KEYS[1], string.format('%.0f', tonumber(ARGV[15]) + tonumber(ARGV[4])))
end
return 1
)lua";

// KEYS: entry. ARGV: the id of what is recorded by now (or empty). Removes an entry, once nothing is left to be drained.
inline constexpr const char *kDrop = R"lua(
local h = redis.call('HMGET', KEYS[1], 'fi', 'd', 'f')
if h[1] and h[1] == ARGV[1] then
    redis.call('HDEL', KEYS[1], 'f', 'fi')
    h[3] = false
end
if h[3] or (h[2] and h[2] ~= '0') then
    redis.call('HSET', KEYS[1], 'e', '0')
    return 0
end
return redis.call('DEL', KEYS[1])
)lua";

// KEYS: heartbeat, statistics. Says that what is here is up to date, and returns hits, misses and denials since last time.
inline constexpr const char *kBeat = R"lua(
redis.call('SET', KEYS[1], redis.call('TIME')[1])
local h = redis.call('HMGET', KEYS[2], 'hits', 'misses', 'denials')
redis.call('DEL', KEYS[2])
return {h[1] or '0', h[2] or '0', h[3] or '0'}
)lua";

}  // namespace pg_billing::cache_scripts
