-- Reads what one shard has counted and what it holds, at one instant.
--
-- KEYS  [1] the shard's counts, [2] its event stream, [3] its counts by channel, which name the bots that have open sessions
-- ARGV  [1] what the names of the shard's sets of open sessions begin with; a bot's id follows
-- Returns {opened, closed, written, released, open, pending}: sessions opened and closed and event records written and
--         released since the shard began; sessions open and records in the stream now.
--
-- The names of the sets are made here, since the bots are known only at the instant; all are of the shard's slot.

local names = { 'opened', 'closed', 'written', 'released' }
local counted = { opened = 0, closed = 0, written = 0, released = 0 }
local counts = redis.call('HGETALL', KEYS[1])
for i = 1, #counts, 2 do
  -- Version 0.1.0 counted written records under another name, which is the only other field there is.
  local name = counted[counts[i]] and counts[i] or 'written'
  counted[name] = counted[name] + counts[i + 1]
end

local open, seen = 0, {}
for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
  local bot = string.match(field, '^[^\31]*')
  if not seen[bot] then
    seen[bot] = true
    open = open + redis.call('ZCARD', ARGV[1] .. bot)
  end
end

local reply = {}
for i, name in ipairs(names) do reply[i] = counted[name] end
reply[5] = open
reply[6] = redis.call('XLEN', KEYS[2])
return reply
