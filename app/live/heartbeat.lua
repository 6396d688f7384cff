-- Records a worker's heartbeat. It runs also when Redis is full: deleting the field first frees the memory that setting it takes.
--
-- KEYS  [1] the heartbeats of all workers (hash)
-- ARGV  [1] the worker, [2] now in ms since the epoch
-- Returns  1.

if not tonumber(ARGV[2]) then
  return redis.error_reply('ERR heartbeat: now is no number')
end

redis.call('HDEL', KEYS[1], ARGV[1])
return redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
