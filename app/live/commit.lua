-- Commits decided folds of one shard, each by a compare-and-set of its own.
--
-- KEYS  [1] the shard's event stream, [2] its counts, [3] its feed, [4] its open sessions by channel;
--       then the keys that commits refer to by index
-- ARGV  [1] now in ms, as the caller decided with
--       [2] how far that may be off this server's clock, in ms
--       [3] '1': go on when Redis is full (closes), '0': refuse (ingest)
--       [4] how long the feed keeps a record, in ms
--       [5…] one commit after the other, each:
--   state     index of the state's key
--   expected  the version that the caller decided on ('': no state)
--   version   the version to write, unique over all commits
--   value     the state to write; '' writes nothing and only checks the version
--   due       index of the sorted set of deadlines
--   live      index of the sorted set of the bot's open sessions
--   users     index of the sorted set of the bot's open sessions by user, '' where that does not change
--   member    the strand in `due` and `live`
--   leave     the member of `users` whose session closed, '' for none
--   join      the member of `users` whose session opened, '' for none
--   left      the field of KEYS[4] whose session closed, '' for none
--   joined    the field of KEYS[4] whose session opened, '' for none
--   wake_at   ms, '' for none
--   opened_at ms where a session opened; '-' where one closed and none is open; '' where that did not change
--   keep_ms   how long the state lives on where no session is open; '' where one is
--   opened    how many sessions it opens
--   closed    how many sessions it closes
--   checks    how many of: index of a message hash, n, then n ids; if any id is in it, nothing is written
--   messages  how many of: index of a message hash, n, then n fields and values, alternating
--   events    n, then n stream records
--   feed      a record of the feed, '' for none
-- (Flat, since the msgpack of Lua knows no binary strings.)
--
-- Returns  {now in ms, 0} if the clock was too far off (nothing was written), else
--          {now in ms, 1, {i, 'conflict', version, value} | {i, 'repeat', id, message, id, message, …} | {i, 'unreadable'} …},
--          naming only the commits (from 1) that wrote nothing.
--
-- Nothing here knows a timeout, a role or a reason.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local off = now - tonumber(ARGV[1])
if off > tonumber(ARGV[2]) or off < -tonumber(ARGV[2]) then
  return { tostring(now), 0 }
end

local at = 4
local function take()
  at = at + 1
  return ARGV[at]
end
local function take_key()
  local index = tonumber(take())
  return index and KEYS[index]
end
-- The next lists: {key, first argument, last argument}.
local function take_lists()
  local lists = {}
  for i = 1, tonumber(take()) do
    local key, n = take_key(), tonumber(take())
    lists[i] = { key, at + 1, at + n }
    at = at + n
  end
  return lists
end

-- Read and check everything before the first write: an error after a write would leave half of it.
local refused = {}
local accepted = {}
local index = 0
while at < #ARGV do
  index = index + 1
  local c = {
    state = take_key(), expected = take(), version = take(), value = take(),
    due = take_key(), live = take_key(), users = take_key(),
    member = take(), leave = take(), join = take(), left = take(), joined = take(),
    wake_at = take(), opened_at = take(), keep_ms = take(),
    opened = tonumber(take()), closed = tonumber(take()),
    checks = take_lists(), messages = take_lists(),
  }
  local n = tonumber(take())
  c.first_event, c.last_event = at + 1, at + n
  at = at + n
  c.feed = take()

  -- The stored value may be of another type, or none that a commit wrote: that fails this commit alone.
  local stored = redis.pcall('GET', c.state)
  local version, value = '', ''
  local colon = type(stored) == 'string' and string.find(stored, ':', 1, true)
  if colon and colon > 1 then
    version, value = string.sub(stored, 1, colon - 1), string.sub(stored, colon + 1)
  end
  if stored and version == '' then
    refused[#refused + 1] = { index, 'unreadable' }
  elseif version ~= c.expected then
    refused[#refused + 1] = { index, 'conflict', version, value }
  else
    local repeats = { index, 'repeat' }
    local unreadable = false
    for _, check in ipairs(c.checks) do
      local messages = redis.pcall('HMGET', check[1], unpack(ARGV, check[2], check[3]))
      unreadable = unreadable or messages.err
      for i, message in ipairs(messages) do
        if message then
          repeats[#repeats + 1] = ARGV[check[2] + i - 1]
          repeats[#repeats + 1] = message
        end
      end
    end
    if unreadable then
      refused[#refused + 1] = { index, 'unreadable' }
    elseif #repeats == 2 then
      accepted[#accepted + 1] = c
    else
      refused[#refused + 1] = repeats
    end
  end
end

if ARGV[3] == '1' and #accepted > 0 then
  -- This first write cannot enlarge memory, so Redis lets the script go on when it is full (see app/live/lua.py).
  redis.call('HDEL', KEYS[1] .. ':none', '')
end

local kept_since = string.format('%.0f', now - tonumber(ARGV[4]))
local opened, closed, records = 0, 0, 0
for _, c in ipairs(accepted) do
  if c.value ~= '' then
    opened, closed, records = opened + c.opened, closed + c.closed, records + c.last_event - c.first_event + 1
    local value = c.version .. ':' .. c.value
    if c.keep_ms == '' then
      redis.call('SET', c.state, value)
    else
      redis.call('SET', c.state, value, 'PX', c.keep_ms)
    end
    if c.opened_at == '-' then
      redis.call('ZREM', c.live, c.member)
    elseif c.opened_at ~= '' then
      redis.call('ZADD', c.live, c.opened_at, c.member)
    end
    if c.leave ~= '' then
      redis.call('ZREM', c.users, c.leave)
    end
    if c.join ~= '' then
      redis.call('ZADD', c.users, 0, c.join)
    end
    if c.left ~= '' and redis.call('HINCRBY', KEYS[4], c.left, -1) == 0 then
      redis.call('HDEL', KEYS[4], c.left)
    end
    if c.joined ~= '' then
      redis.call('HINCRBY', KEYS[4], c.joined, 1)
    end
    if c.wake_at == '' then
      redis.call('ZREM', c.due, c.member)
    else
      redis.call('ZADD', c.due, c.wake_at, c.member)
    end
    for _, list in ipairs(c.messages) do
      redis.call('HSET', list[1], unpack(ARGV, list[2], list[3]))
    end
    for i = c.first_event, c.last_event do
      redis.call('XADD', KEYS[1], '*', 'e', ARGV[i])
    end
    if c.feed ~= '' then
      redis.call('XADD', KEYS[3], 'MINID', '~', kept_since, '*', 'e', c.feed)
    end
  end
end

-- The consistency check compares these counts with the sets and the stream.
if opened > 0 then redis.call('HINCRBY', KEYS[2], 'opened', opened) end
if closed > 0 then redis.call('HINCRBY', KEYS[2], 'closed', closed) end
if records > 0 then redis.call('HINCRBY', KEYS[2], 'written', records) end

return { tostring(now), 1, unpack(refused) }
