-- COMMIT: makes this node agree to a greater token, on behalf of a claim that it granted a smaller one.
--
-- KEYS  lock, counter, mark
-- ARGV  nonce     the claim's id
--       token     the greatest token of the claim's grants
--
-- Replies  {'OK'}
--          {'LOST'}            the lock is no longer this claim's here, or the node has begun another life since
--          {'STALE', counter}  somebody drew a greater token meanwhile

if #KEYS == 0 then return 'loaded' end

local lock, counter, mark = KEYS[1], KEYS[2], KEYS[3]
local nonce, token = ARGV[1], tonumber(ARGV[2])

local held = redis.pcall('GET', lock)
if type(held) ~= 'string' or string.sub(held, 1, 32) ~= nonce then return {'LOST'} end

-- Without this a node that came back with older data could repeat a token.
local replication = redis.call('INFO', 'replication')
local function field(name) return string.match(replication, '%f[%w_]' .. name .. ':([^\r\n]*)') or '' end
local seen = redis.call('HMGET', mark, 'rid', 'till')
local till = tonumber(seen[2] or '')
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
-- An id that is new in the same life counts as another one here: the ballot is lost, and the next GRANT writes it down.
if field('role') ~= 'master' or seen[1] ~= field('master_replid') or not till or not (now >= till) then
  return {'LOST'}
end

local last = redis.pcall('GET', counter)
if type(last) == 'table' then return {'LOST'} end
local c = 0
if last then c = tonumber(last) end
if not c or not token or token > 9007199254740990 or c > token then return {'STALE', last or '0'} end
if c < token then redis.call('SET', counter, string.format('%.0f', token)) end
return {'OK'}
