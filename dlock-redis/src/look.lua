-- LOOK: says who holds a lock and whether the node grants at all. Writes nothing.
--
-- KEYS  lock, mark
-- ARGV  wait      W in milliseconds
--
-- Replies  {value or '', remaining PTTL in milliseconds, state, ...} with the state
--          'READY' or 'UNMARKED' or 'REPLICA' or 'QUARANTINED', end in microseconds, how long still in microseconds, why

if #KEYS == 0 then return 'loaded' end

local lock, mark = KEYS[1], KEYS[2]
local held = redis.pcall('GET', lock)
local value, pttl = '', 0
if type(held) == 'string' then value, pttl = held, redis.call('PTTL', lock) end

local replication = redis.call('INFO', 'replication')
local function field(name) return string.match(replication, '%f[%w_]' .. name .. ':([^\r\n]*)') or '' end
if field('role') ~= 'master' then return {value, pttl, 'REPLICA'} end
local seen = redis.call('HMGET', mark, 'rid', 'till', 'why')
local till = tonumber(seen[2] or '')
-- Of another life: the next grant begins the quarantine, which is its affair.
if not till or seen[1] ~= field('master_replid') then return {value, pttl, 'UNMARKED'} end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
-- As the next grant will: the node's clock was stepped back, or somebody wrote here by hand.
local wait = tonumber(ARGV[1]) * 1000
if not (till <= now + wait) then till = now + wait end
if now < till then
  return {value, pttl, 'QUARANTINED', string.format('%.0f', till), string.format('%.0f', till - now), seen[3] or ''}
end
return {value, pttl, 'READY'}
