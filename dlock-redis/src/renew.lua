-- RENEW: extends those locks that are still the given claims', and makes none anew.
--
-- KEYS  locks, mark
-- ARGV  px        lease in milliseconds; never more than was granted
--       careful   1 behind an automatic failover, else 0
--       nonces    the claims' ids, one for each lock
--
-- Replies with 1 for each lock that was extended, and 0 for each that is gone or somebody else's; or {'QUARANTINED'},
-- or {'REPLICA', master}.

if #KEYS == 0 then return 'loaded' end

local mark = KEYS[#KEYS]
if ARGV[2] == '1' then
  -- The master that this one has replaced may still serve others, for whom a lease that is renewed here only is over.
  local replication = redis.call('INFO', 'replication')
  local function field(name) return string.match(replication, '%f[%w_]' .. name .. ':([^\r\n]*)') or '' end
  if field('role') ~= 'master' then
    return {'REPLICA', field('master_host') .. ':' .. field('master_port')}
  end
  local rid, promo = field('master_replid'), field('master_replid2')
  local seen = redis.call('HMGET', mark, 'rid', 'till', 'run', 'promo', 'fed')
  local same = rid ~= '' and seen[1] == rid
  if not same and seen[3] then
    -- The same life under another id, as in GRANT: a first replica has come, or an idle backlog was given up.
    local run = string.match(redis.call('INFO', 'server'), '%f[%w_]run_id:(%x+)')
    local fed = string.match(redis.call('INFO', 'stats'), '%f[%w_]total_net_repl_input_bytes:(%d+)')
    same = run and fed and seen[3] == run and seen[4] == promo and seen[5] == fed
  end
  local till = tonumber(seen[2] or '')
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  if not same or not till or not (now >= till) then return {'QUARANTINED'} end
end

local extended = {}
for i = 1, #KEYS - 1 do
  local held = redis.pcall('GET', KEYS[i])
  if type(held) == 'string' and string.sub(held, 1, 32) == ARGV[i + 2] then
    extended[i] = redis.call('PEXPIRE', KEYS[i], ARGV[1])
  else
    extended[i] = 0
  end
end
return extended
