-- Finds the open sessions without a deadline, at one instant: a session that closes in the meantime lacks nothing.
--
-- KEYS  [1] the bot's open sessions in this shard, [2] the deadlines
-- ARGV  members of the first set
-- Returns  the members that are open and have no deadline.

local without = {}
for i = 1, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[i]) and not redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    without[#without + 1] = ARGV[i]
  end
end
return without
