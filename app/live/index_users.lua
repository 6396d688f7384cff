-- Adds open sessions to the sorted set that finds them by user. A session that has closed in the meantime is left out.
--
-- KEYS  [1] the bot's open sessions in this shard, [2] the same by user
-- ARGV  the member of the first set and the member of the second, alternating
-- Returns  how many were added.

if #ARGV % 2 == 1 then
  return redis.error_reply('ERR index_users: members come in pairs')
end

local added = 0
for i = 1, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) then
    added = added + redis.call('ZADD', KEYS[2], 0, ARGV[i + 1])
  end
end
return added
