-- RELEASE: deletes those locks that are the given claims', and wakes who waits for them.
--
-- KEYS  locks
-- ARGV  nonces    the claims' ids, one for each lock
--       channels  whom to tell, one for each lock; '': nobody
--
-- Replies with 1 for each lock that was deleted, and 0 for each that was gone or somebody else's.

if #KEYS == 0 then return 'loaded' end

local deleted = {}
for i, lock in ipairs(KEYS) do
  local held = redis.pcall('GET', lock)
  deleted[i] = 0
  if type(held) == 'string' and string.sub(held, 1, 32) == ARGV[i] then
    deleted[i] = redis.call('DEL', lock)
    -- A message is a hint: a user who may not publish still releases.
    if ARGV[#KEYS + i] ~= '' then redis.pcall('PUBLISH', ARGV[#KEYS + i], '') end
  end
end
return deleted
