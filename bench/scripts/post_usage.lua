-- Posts one event at a time, of the hot tenant, with a random key of 32 hexadecimal digits; of the environment: KEY.
local head = { ["Authorization"] = "Bearer " .. os.getenv("KEY"), ["Content-Type"] = "application/json" }
local threads = 0

function setup(thread)
   threads = threads + 1
   thread:set("seed", os.time() * 1000 + threads)
end

function init()
   math.randomseed(seed)
end

function request()
   local key = string.format("%08x%08x%08x%08x", math.random(0, 0x7fffffff), math.random(0, 0x7fffffff),
                             math.random(0, 0x7fffffff), math.random(0, 0x7fffffff))
   return wrk.format("POST", nil, head, '{"metric":"api_calls","quantity":1,"idempotencyKey":"' .. key .. '"}')
end

function done(summary, latency)
   io.write("failed ", summary.errors.status + summary.errors.read + summary.errors.timeout, "\n")
end
