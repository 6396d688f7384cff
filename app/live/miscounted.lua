-- Compares the counts of open sessions by channel with the sessions that are open, at one instant.
--
-- KEYS  [1] the counts by channel (hash), [2] the shard's counts
-- ARGV  [1] what the names of the shard's sets of open sessions begin with; then bots that the counts may lack
-- Returns  {1 if the sums differ, else 0; `opened` and `closed` of the shard's counts; then the bots of the counts and of ARGV}.
--
-- The names of the sets are made here, since the bots are known only at the instant; all are of the shard's slot.

local bots, sets = {}, {}
local function add(bot)
  if not sets[bot] then
    sets[bot] = ARGV[1] .. bot
    bots[#bots + 1] = bot
  end
end
for i = 2, #ARGV do add(ARGV[i]) end

local counted = 0
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  add(string.match(fields[i], '^[^\31]*'))
  counted = counted + fields[i + 1]
end
for _, bot in ipairs(bots) do
  counted = counted - redis.call('ZCARD', sets[bot])
end

local opened, closed = unpack(redis.call('HMGET', KEYS[2], 'opened', 'closed'))
local reply = { counted == 0 and 0 or 1, opened or '0', closed or '0' }
for _, bot in ipairs(bots) do reply[#reply + 1] = bot end
return reply
