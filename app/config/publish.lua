-- Move the directory from one mark to the next, or write nothing.
--
-- KEYS[1] the directory (hash): `mark`, `bot:<id>`, `key:<digest>`
-- KEYS[2] its changes (stream)
-- ARGV[1] the mark that the changes were read from ('' if there was none)
-- ARGV[2] the mark that they lead to
-- ARGV[3] '1' if they replace everything
-- ARGV[4] how many changes the stream keeps
-- ARGV[5] the names of the changed fields, as JSON, for those who follow
-- ARGV[6…] field and value, by turns; an empty value removes the field
-- Returns 1, or 0 if somebody else has moved the directory in the meantime.

local mark = redis.call('HGET', KEYS[1], 'mark') or ''
if mark ~= ARGV[1] then
  return 0
end
if ARGV[3] == '1' then
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
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'from', ARGV[3] == '1' and '' or ARGV[1], 'to', ARGV[2], 'fields', ARGV[5])
return 1
