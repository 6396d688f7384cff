-- Appends a rejected record to its shard's event stream again.
--
-- KEYS  [1] the shard's event stream, [2] its counts
-- ARGV  [1] the record
-- Returns the id of the new entry.
--
-- The record counts as written once more: its rejection counted it as released.

redis.call('HINCRBY', KEYS[2], 'written', 1)
return redis.call('XADD', KEYS[1], '*', 'e', ARGV[1])
