-- Replaces the counts of open sessions by channel, unless sessions have opened or closed since they were counted.
--
-- KEYS  [1] the counts by channel (hash), [2] the shard's counts
-- ARGV  [1] `opened` and [2] `closed` of the shard's counts before the counting; then fields and counts, alternating
-- Returns  1 if they were wrong and were replaced, else 0.

if #ARGV < 2 or #ARGV % 2 == 1 then
  return redis.error_reply('ERR recount: fields and counts come in pairs')
end

local opened, closed = unpack(redis.call('HMGET', KEYS[2], 'opened', 'closed'))
if (opened or '0') ~= ARGV[1] or (closed or '0') ~= ARGV[2] then
  return 0
end

local same = redis.call('HLEN', KEYS[1]) == #ARGV / 2 - 1
for i = 3, #ARGV, 2 do
  same = same and redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1]
end
if same then
  return 0
end

redis.call('DEL', KEYS[1])
for i = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return 1
