-- Releases archived records: acknowledges and deletes them, and lets the transcripts of their sessions expire.
-- Doing it twice changes nothing.
--
-- KEYS  [1] the shard's event stream, [2] its counts; then the message hashes of the records' sessions
-- ARGV  [1] the consumer group
--       [2] how long the message hashes live on, in ms
--       [3…] ids of records
-- Returns  how many records it was given.

if not tonumber(ARGV[2]) then
  return redis.error_reply('ERR release: the time to live is no number')
end

for i = 3, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
-- By the hundred: each command is written to the append-only file, and unpack has a limit.
for first = 3, #ARGV, 100 do
  local last = math.min(first + 99, #ARGV)
  redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, first, last))
  local released = redis.call('XDEL', KEYS[1], unpack(ARGV, first, last))
  if released > 0 then
    redis.call('HINCRBY', KEYS[2], 'released', released)
  end
end
return #ARGV - 2
