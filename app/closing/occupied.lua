-- Finds the sets that have members.
--
-- KEYS    sets of open sessions and of their users, alternating: a pair for each bot
-- Returns the places, from 0, of the pairs of which one has a member.

local occupied = {}
for i = 1, #KEYS, 2 do
  if redis.call('EXISTS', KEYS[i], KEYS[i + 1]) > 0 then
    occupied[#occupied + 1] = (i - 1) / 2
  end
end
return occupied
