-- Has all records of an event stream delivered to consumers again if one of them is neither undelivered nor pending.
--
-- KEYS  [1] the event stream
-- ARGV  [1] the consumer group
-- Returns 1 if the group was set back to the start of the stream, else 0.
--
-- A stream with much to deliver is not counted through: it is checked when the archivists have caught up.

if redis.call('XLEN', KEYS[1]) == 0 then
  return 0
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local info = {}
  for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
  if info['name'] == ARGV[1] then
    local undelivered = #redis.call('XRANGE', KEYS[1], '(' .. info['last-delivered-id'], '+', 'COUNT', 10000)
    if undelivered < 10000 and redis.call('XLEN', KEYS[1]) > info['pending'] + undelivered then
      redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], '0')
      return 1
    end
  end
end
return 0
