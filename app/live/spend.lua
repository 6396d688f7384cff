-- Takes tokens out of a bucket that fills at a steady rate.
--
-- KEYS  [1] the bucket: `left` tokens at the instant `at` in ms
-- ARGV  [1] tokens a second, [2] the most that it holds, [3] how many are asked for
-- Returns  {how many were taken, how many are left}

local rate, most, asked = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not (rate and most and asked) or rate <= 0 then
  return redis.error_reply('ERR spend: rate, size and number must be numbers above 0')
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local stored = redis.call('HMGET', KEYS[1], 'left', 'at')
local left, at = tonumber(stored[1]) or most, tonumber(stored[2]) or now
left = math.min(most, left + math.max(0, now - at) * rate / 1000)
local taken = math.max(0, math.min(asked, math.floor(left)))
redis.call('HSET', KEYS[1], 'left', tostring(left - taken), 'at', now)
redis.call('PEXPIRE', KEYS[1], math.ceil(most / rate * 1000) + 1000)
return { taken, math.floor(left - taken) }
