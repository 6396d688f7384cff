-- Sets a variable of a user, unless all of the user's variables together would take too much room. Deletes expired ones.
--
-- KEYS  [1] the user's variables (hash): name to expiry in ms, a colon, and the value
-- ARGV  [1] the name
--       [2] expiry, colon and value to store
--       [3] now in ms, in the bot's own time
--       [4] how many bytes names and stored values may take together
--       [5] how long the hash lives on without another write, in ms
-- Returns  how many bytes they take if it was set, or minus how many they would take if it was not.

local now, limit = tonumber(ARGV[3]), tonumber(ARGV[4])
if not now or not limit or not tonumber(ARGV[5]) or not string.match(ARGV[2], '^%d+:') then
  return redis.error_reply('ERR set_user_variable: arguments are missing or no numbers')
end

local size = #ARGV[1] + #ARGV[2]
local expired = {}
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
  local name, value = stored[i], stored[i + 1]
  if now >= (tonumber(string.match(value, '^(%d+):')) or 0) then
    expired[#expired + 1] = name
  elseif name ~= ARGV[1] then
    size = size + #name + #value
  end
end
if size > limit then
  return -size
end

for _, name in ipairs(expired) do
  redis.call('HDEL', KEYS[1], name)
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return size
