-- Checks the hot tenant's quota; waits DELAY milliseconds before each request, if it is set.
wrk.headers["Authorization"] = "Bearer " .. os.getenv("KEY")
local pause = os.getenv("DELAY")
if pause then
   function delay()
      return tonumber(pause)
   end
end

function done(summary, latency)
   io.write("failed ", summary.errors.status + summary.errors.read + summary.errors.timeout, "\n")
   io.write("p99 ", latency:percentile(99) / 1000, "\n")
end
