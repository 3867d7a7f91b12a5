-- Lets requests through nginx by the quota cache in Redis (quota.lua), and counts them there. What the cache does not know,
-- or while Redis does not answer, pg_billing is asked (the location /_quota). A request counts in one of the two; in both, never in
-- none, if Redis counts it and then does not answer in time.

local redis = require "nginx.redis"
local edge = {}
local settings, sha

-- Reads the script that Redis runs, once for all workers: script (a file), host and port or unix (a path), prefix, password.
function edge.setup(given)
    settings = given
    local file = assert(io.open(given.script))
    settings.source = file:read("*a")
    file:close()
end

-- Returns {verdict, reason, quota, remaining, resets_in}, or nothing: Redis does not answer.
local function ask_cache(tenant, metric, quantity)
    local connection = redis:new()
    connection:set_timeout(200)
    local connected
    if settings.unix then
        connected = connection:connect("unix:" .. settings.unix)
    else
        connected = connection:connect(settings.host, settings.port)
    end
    if not connected then return nil end
    if settings.password and connection:get_reused_times() == 0 and not connection:auth(settings.password) then return nil end
    local prefix = settings.prefix
    local arguments = {4, prefix .. "{" .. tenant .. "}:" .. metric, prefix .. "dirty", prefix .. "alive", prefix .. "stats",
                       tostring(quantity), "consume", 30}
    sha = sha or ngx.sha1_bin(settings.source):gsub(".", function(c) return string.format("%02x", c:byte()) end)
    local answer, complaint = connection:evalsha(sha, unpack(arguments))
    if not answer and complaint and complaint:find("NOSCRIPT", 1, true) then
        answer = connection:eval(settings.source, unpack(arguments))
    end
    if answer then connection:set_keepalive(60000, 100) end
    return answer or nil
end

local function tell_limits(metric, quota, remaining, resets_in)
    if quota == "" then return end
    ngx.header["RateLimit-Policy"] = string.format('"%s";q=%s', metric, quota:match("^%d+"))
    ngx.header["RateLimit"] = string.format('"%s";r=%s', metric, remaining:match("^%d+"))
        .. (resets_in ~= "" and ";t=" .. resets_in or "")
end

local function refuse(status, body)
    ngx.status = status
    ngx.header["Content-Type"] = "application/problem+json"
    ngx.print(body)
    return ngx.exit(status)
end

local function problem(status, title, code)
    return refuse(status, string.format('{"title":"%s","status":%d,"code":"%s"}', title, status, code))
end

local function ask_database(metric, quantity, on_error)
    local answer = ngx.location.capture("/_quota", {args = {metric = metric, quantity = quantity}, share_all_vars = true})
    local decided = {[200] = true, [401] = true, [402] = true, [403] = true, [429] = true}
    if decided[answer.status] then
        for _, name in ipairs {"RateLimit", "RateLimit-Policy", "Retry-After"} do
            ngx.header[name] = answer.header[name]
        end
        if answer.status == 200 then return end
        return refuse(answer.status, answer.body)
    end
    ngx.log(ngx.ERR, "neither Redis nor pg_billing decides about ", metric, ": HTTP ", answer.status)
    if on_error ~= "open" then return problem(503, "Not decided", "undecided") end
end

local payment = {upgrade_required = true, no_subscription = true, subscription_inactive = true}

-- Lets the request through, or answers it. on_error: open or close, where nothing can decide.
function edge.access(tenant, metric, quantity, on_error)
    local answer = ask_cache(tenant, metric, quantity)
    if not answer or tonumber(answer[1]) < 0 then return ask_database(metric, quantity, on_error) end
    local reason = answer[2]
    tell_limits(metric, answer[3], answer[4], answer[5])
    if tonumber(answer[1]) > 0 then return end
    if payment[reason] then return problem(402, "Payment required", reason) end
    if answer[5] ~= "" then ngx.header["Retry-After"] = answer[5] end
    return problem(429, "Quota exceeded", reason)
end

return edge
