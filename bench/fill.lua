-- Leaves ARGV[1] sessions in Redis, copies of one that the service has stored. Returns the bytes of memory that
-- Redis then uses for each.

local sessions, key, record = tonumber(ARGV[1]), "", ""
if sessions > 0 then
  repeat key = redis.call("RANDOMKEY") until #key == #"auth_session:" + 64 -- neither the floor's nor a probe
  record = redis.call("GET", key)
end
redis.call("FLUSHALL")
for i = 1, sessions do
  redis.call("SET", string.format("auth_session:%064x", i), record, "EX", 1800)
end
return redis.call("INFO", "memory"):match("used_memory:(%d+)") / math.max(sessions, 1)
