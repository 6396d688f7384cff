-- Commits decided folds, each by a compare-and-set of its own. They may belong to any shards.
--
-- KEYS  the keys that commits refer to by index
-- ARGV  [1] now in ms, as the caller decided with
--       [2] how far that may be off this server's clock, in ms
--       [3] '1': go on when Redis is full (closes), '0': refuse (ingest)
--       [4] how long a feed keeps a record, in ms
--       [5…] one commit after the other, each:
--   head      packed by HEAD, then the beginning of the stored value that the caller decided on: its version and a colon
--             (nothing: no state). Packed are
--               state, hash, due, live, users, channels, events, feed, counts
--                         indices of the state, of the message hash of `id`, of the sorted sets of deadlines, of the bot's open
--                         sessions and of those by user, of the open sessions by channel, of the event stream, of the feed and
--                         of the shard's counts; 0 where it is not used
--               member    where the strand, the member of `due` and `live`, begins in the name of the state
--               single    0: messages come in lists; 1: one message, stored only if its id is new in the hash; 2: one, unchecked
--               opened, closed  how many sessions it opens and closes
--               checks, lists, records  how many of them follow
--               wake_at   ms; -1 for none
--               opened_at ms where a session opened; -2 where one closed and none is open; -1 where that did not change
--               keep_ms   how long the state lives on where no session is open; -1 where one is
--   value     version, colon and state to write, the version unique over all commits; '' writes nothing and only checks
--   id, message     where `single` is not 0
--   leave, join     where `users` is not 0: its members whose session closed and opened, '' for none
--   left, joined    likewise the fields of `channels`
--   checks    each: index of a message hash, n, then n ids; if any id is in it, nothing is written
--   lists     each: index of a message hash, n, then n fields and values, alternating
--   records   stream records
--   feed      where `feed` is not 0: a record of the feed
-- (Flat, since the msgpack of Lua knows no binary strings.)
--
-- Returns  {now in ms, 0} if the clock was too far off (nothing was written), else
--          {now in ms, 1, {i, 'conflict', version, value} | {i, 'repeat', id, message, id, message, …} | {i, 'unreadable'} …},
--          naming only the commits (from 1) that wrote nothing.
--
-- Nothing here knows a timeout, a role or a reason.

local KEYS, ARGV, call, pcall = KEYS, ARGV, redis.call, redis.pcall
local sub, find, tonumber, unpack = string.sub, string.find, tonumber, unpack
local unpack_head = struct.unpack
local HEAD = '>HHHHHHHHHHHHHHHHi8i8i8'

local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local off = now - tonumber(ARGV[1])
if off > tonumber(ARGV[2]) or off < -tonumber(ARGV[2]) then
  return { tostring(now), 0 }
end

-- The refusal of a commit whose stored value is not the one that was decided on. That may be of another type, or none that a
-- commit wrote: it fails this commit alone.
local function not_expected(index, stored)
  if not stored then
    return { index, 'conflict', '', '' }
  end
  local colon = type(stored) == 'string' and find(stored, ':', 1, true)
  if colon and colon > 1 then
    return { index, 'conflict', sub(stored, 1, colon - 1), sub(stored, colon + 1) }
  end
  return { index, 'unreadable' }
end

-- The refusal of a commit with an id that is stored already, nil if all are new. `at`: the first of `checks` lists.
local function repeats_of(index, at, checks)
  local repeats
  for _ = 1, checks do
    local n = tonumber(ARGV[at + 1])
    local messages = pcall('HMGET', KEYS[tonumber(ARGV[at])], unpack(ARGV, at + 2, at + 1 + n))
    if messages.err then
      return { index, 'unreadable' }
    end
    for i = 1, n do
      if messages[i] then
        repeats = repeats or { index, 'repeat' }
        repeats[#repeats + 1] = ARGV[at + 1 + i]
        repeats[#repeats + 1] = messages[i]
      end
    end
    at = at + 2 + n
  end
  return repeats
end

local function after_lists(at, lists)
  for _ = 1, lists do
    at = at + 2 + tonumber(ARGV[at + 1])
  end
  return at
end

local reply = { tostring(now), 1 }
local counts = {}
local when_full = ARGV[3] == '1'
local kept_since = string.format('%.0f', now - tonumber(ARGV[4]))
local index, at, last = 0, 5, #ARGV
while at <= last do
  index = index + 1
  local state, hash, due, live, users, channels, events, feed, counted, member_at, single, opened, closed,
    checks, lists, records, wake_at, opened_at, keep_ms, expected_at = unpack_head(HEAD, ARGV[at])
  local name, expected, value = KEYS[state], sub(ARGV[at], expected_at), ARGV[at + 1]
  at = at + 2
  local id, message, leave, join, left, joined
  if single > 0 then
    id, message = ARGV[at], ARGV[at + 1]
    at = at + 2
  end
  if users > 0 then
    leave, join, left, joined = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
    at = at + 4
  end
  local first_check = at
  local first_list = checks > 0 and after_lists(at, checks) or at
  local first_record = lists > 0 and after_lists(first_list, lists) or first_list
  at = first_record + records
  local fed
  if feed > 0 then
    fed = ARGV[at]
    at = at + 1
  end

  -- Read and check everything of a commit before its first write: an error after a write would leave half of it.
  local refused
  local stored = pcall('GET', name)
  if expected == '' and stored or expected ~= '' and (type(stored) ~= 'string' or sub(stored, 1, #expected) ~= expected) then
    refused = not_expected(index, stored)
  elseif checks > 0 then
    refused = repeats_of(index, first_check, checks)
  end

  if not refused and value ~= '' then
    if when_full then
      -- This first write cannot enlarge memory, so Redis lets the script go on when it is full (see app/live/lua.py).
      call('HDEL', KEYS[counted] .. ':none', '')
      when_full = false
    end
    if single == 1 then
      -- The check of the id, and the first write if it is new.
      local new = pcall('HSETNX', KEYS[hash], id, message)
      if new == 0 then
        refused = { index, 'repeat', id, call('HGET', KEYS[hash], id) }
      elseif new ~= 1 then
        if not find(new.err, 'WRONGTYPE', 1, true) then
          return new
        end
        refused = { index, 'unreadable' }
      end
    elseif single == 2 then
      call('HSET', KEYS[hash], id, message)
    end
  end

  if refused then
    reply[#reply + 1] = refused
  elseif value ~= '' then
    if keep_ms < 0 then
      call('SET', name, value)
    else
      call('SET', name, value, 'PX', keep_ms)
    end
    local member = sub(name, member_at)
    if opened_at >= 0 then
      call('ZADD', KEYS[live], opened_at, member)
    elseif opened_at == -2 then
      call('ZREM', KEYS[live], member)
    end
    if users > 0 then
      if leave ~= '' then
        call('ZREM', KEYS[users], leave)
      end
      if join ~= '' then
        call('ZADD', KEYS[users], 0, join)
      end
      if left ~= '' and call('HINCRBY', KEYS[channels], left, -1) == 0 then
        call('HDEL', KEYS[channels], left)
      end
      if joined ~= '' then
        call('HINCRBY', KEYS[channels], joined, 1)
      end
    end
    if wake_at < 0 then
      call('ZREM', KEYS[due], member)
    else
      call('ZADD', KEYS[due], wake_at, member)
    end
    local list = first_list
    for _ = 1, lists do
      local n = tonumber(ARGV[list + 1])
      call('HSET', KEYS[tonumber(ARGV[list])], unpack(ARGV, list + 2, list + 1 + n))
      list = list + 2 + n
    end
    for i = first_record, first_record + records - 1 do
      call('XADD', KEYS[events], '*', 'e', ARGV[i])
    end
    if feed > 0 then
      call('XADD', KEYS[feed], 'MINID', '~', kept_since, '*', 'e', fed)
    end
    if opened + closed + records > 0 then
      local sums = counts[counted] or { 0, 0, 0 }
      counts[counted] = { sums[1] + opened, sums[2] + closed, sums[3] + records }
    end
  end
end

-- The consistency check compares these counts with the sets and the stream.
for counted, sums in pairs(counts) do
  if sums[1] > 0 then call('HINCRBY', KEYS[counted], 'opened', sums[1]) end
  if sums[2] > 0 then call('HINCRBY', KEYS[counted], 'closed', sums[2]) end
  if sums[3] > 0 then call('HINCRBY', KEYS[counted], 'written', sums[3]) end
end

return reply
