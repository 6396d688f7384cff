-- Compares the counts of open sessions by channel with the sessions that are open, at one instant.
--
-- KEYS  [1] the counts by channel (hash), [2] the shard's counts; then the sets of open sessions of its bots
-- Returns  {1 if the sums differ, else 0; `opened` and `closed` of the shard's counts}.

local counted = 0
for _, count in ipairs(redis.call('HVALS', KEYS[1])) do
  counted = counted + count
end
for i = 3, #KEYS do
  counted = counted - redis.call('ZCARD', KEYS[i])
end
local opened, closed = unpack(redis.call('HMGET', KEYS[2], 'opened', 'closed'))
return { counted == 0 and 0 or 1, opened or '0', closed or '0' }
