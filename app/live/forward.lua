-- Moves a sandbox clock forward; it never moves back.
--
-- KEYS  [1] the bot's clock
-- ARGV  [1] the instant to move it to, in ms since the epoch
-- Returns  the instant at which the clock stands now, in ms, as a string.

local to = tonumber(ARGV[1])
if not to then
  return redis.error_reply('ERR forward: the instant is no number')
end

local at = tonumber(redis.call('GET', KEYS[1]) or '0')
if to > at then
  redis.call('SET', KEYS[1], ARGV[1])
  return ARGV[1]
end
return tostring(at)
