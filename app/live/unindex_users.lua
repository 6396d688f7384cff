-- Deletes members without an open session from the sorted set that finds sessions by user.
--
-- KEYS  [1] the bot's open sessions in this shard, [2] the same by user
-- ARGV  the member of the first set and the member of the second, alternating
-- Returns  how many were deleted.

if #ARGV % 2 == 1 then
  return redis.error_reply('ERR unindex_users: members come in pairs')
end

local deleted = 0
for i = 1, #ARGV, 2 do
  if not redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    deleted = deleted + redis.call('ZREM', KEYS[2], ARGV[i + 1])
  end
end
return deleted
