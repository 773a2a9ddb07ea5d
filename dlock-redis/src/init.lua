-- INIT: marks a node that is new, so that it need not wait as after a loss of data. Somebody must know that it is.
--
-- KEYS  mark
-- ARGV  par       what all clients of a deployment must agree on
--       wait      how long it grants nothing all the same, in milliseconds: 3 D + 2 e
--
-- Replies  {'NEW'}   {'MARKED', how long it grants nothing still, in microseconds}   {'MISMATCH', par of the mark}
--          {'REPLICA', master}   {'BLIND', what INFO does not tell}

if #KEYS == 0 then return 'loaded' end

local mark, par, wait = KEYS[1], ARGV[1], tonumber(ARGV[2]) * 1000
local replication = redis.call('INFO', 'replication')
local function field(name) return string.match(replication, '%f[%w_]' .. name .. ':([^\r\n]*)') or '' end
if field('role') ~= 'master' then
  return {'REPLICA', field('master_host') .. ':' .. field('master_port')}
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local seen = redis.call('HMGET', mark, 'par', 'rid', 'run', 'till')
if seen[1] or seen[2] or seen[3] then
  if seen[1] ~= par then return {'MISMATCH', seen[1] or ''} end
  local left = math.max((tonumber(seen[4] or '') or now) - now, 0)
  return {'MARKED', string.format('%.0f', left)}
end
local run = string.match(redis.call('INFO', 'server'), '%f[%w_]run_id:(%x+)') or ''
local fed = string.match(redis.call('INFO', 'stats'), '%f[%w_]total_net_repl_input_bytes:(%d+)') or ''
for name, value in pairs({master_replid = field('master_replid'), run_id = run, total_net_repl_input_bytes = fed}) do
  if wait > 0 and value == '' then return {'BLIND', name} end
end
redis.call('HSET', mark, 'par', par, 'rid', field('master_replid'), 'run', run, 'promo', field('master_replid2'),
           'fed', fed, 'till', string.format('%.0f', now + wait), 'why', 'new')
return {'NEW'}
