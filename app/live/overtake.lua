-- Takes records of an event stream before those of some bots that stand in front of them.
--
-- KEYS  [1] the event stream
-- ARGV  [1] the consumer group, [2] the consumer
--       [3] how long a record must have been idle to be taken from another consumer, in ms
--       [4] the id after which to look
--       [5] how many records to look at, [6] how many to take
--       [7…] the bots whose records to pass over, each as a record holds it
-- Returns  {the id of the last record that was looked at, the records that were taken, as XCLAIM has them}.
--
-- A record that was taken is pending like any other. The group delivers it again when it comes to its place, unless it is released.

local count, most = tonumber(ARGV[5]), tonumber(ARGV[6])
if not count or not most then
  return redis.error_reply('ERR overtake: a count is no number')
end

local passed = {}
for i = 7, #ARGV do
  passed[ARGV[i]] = true
end

-- The bot of a record is the first item of a msgpack array, a string of up to 255 bytes.
local function bot_of(raw)
  local head, size = string.byte(raw, 2, 3)
  if head == 0xd9 then
    return string.sub(raw, 2, 3 + size)
  end
  return string.sub(raw, 2, 2 + (head or 0xa0) - 0xa0)
end

local last, ids = ARGV[4], {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', count)) do
  last = entry[1]
  if not passed[bot_of(entry[2][2])] then
    ids[#ids + 1] = last
    if #ids == most then
      break
    end
  end
end
if #ids == 0 then
  return { last, {} }
end
ids[#ids + 1] = 'FORCE' -- they are pending with no consumer yet
return { last, redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], unpack(ids)) }
