-- Deletes a strand's state if it is still the one that was read, and the transcripts of its sessions.
--
-- KEYS  [1] the state; then the message hashes
-- ARGV  [1] the state as it was read, with its version, which no other state has; '' where there was none
-- Returns  1, or 0 if the state is another one by now; the message hashes are deleted either way.

for i = 2, #KEYS do
  redis.call('UNLINK', KEYS[i])
end
local stored = redis.call('GET', KEYS[1]) or ''
if stored ~= ARGV[1] then
  return 0
end
redis.call('UNLINK', KEYS[1])
return 1
