-- Moves the copy of the configuration from one mark to the next, or writes nothing.
--
-- KEYS  [1] the copy (hash): `mark`, `bot:<id>`, `key:<digest>`
--       [2] its changes (stream)
-- ARGV  [1] the mark that the changes were read from ('' if there was none)
--       [2] the mark that they lead to
--       [3] '1' if they replace the whole copy
--       [4] how many changes the stream keeps
--       [5] the names of the changed fields as a JSON array, for the followers
--       [6…] field and value, alternating; an empty value removes the field
-- Returns  1, or 0 if another process has moved the copy in the meantime.

if not tonumber(ARGV[4]) or #ARGV % 2 == 0 then
  return redis.error_reply('ERR publish: arguments are missing')
end
local mark = redis.call('HGET', KEYS[1], 'mark') or ''
if mark ~= ARGV[1] then
  return 0
end

local whole = ARGV[3] == '1'
if whole then
  redis.call('DEL', KEYS[1])
end
for i = 6, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('HSET', KEYS[1], 'mark', ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'from', whole and '' or ARGV[1], 'to', ARGV[2], 'fields', ARGV[5])
return 1
