-- GRANT: takes the lock on this node if it is free, and draws a token.
--
-- KEYS  lock, counter, mark
-- ARGV  nonce     the claim's id, 32 hexadecimal digits
--       px        lease in milliseconds
--       proposal  token that the client proposes: its clock in microseconds, or one more than it has seen
--       par       what all clients of a deployment must agree on
--       wait      W in milliseconds: how long the node grants nothing after it came up or took over; 0: never
--       reserve   in milliseconds: what W must exceed the lease by
--       bucket    D in milliseconds
--       holder    who asks, for people
--
-- Replies  {'GRANTED', token}
--          {'DENIED', counter, remaining PTTL in milliseconds, nonce of the holder}
--          {'QUARANTINED', end in microseconds of the node's clock, how long still in microseconds, why}
--          {'MISMATCH', par of the mark}   {'REPLICA', master}   {'TTL'}   {'DAMAGED', key}   {'RANGE'}
--          {'BLIND', what INFO does not tell}
--
-- Numbers here are doubles, exact up to 2^53; microseconds of the Unix epoch stay below that until 2255.

if #KEYS == 0 then return 'loaded' end -- only to have the script in the node's cache

local lock, counter, mark = KEYS[1], KEYS[2], KEYS[3]
local nonce, px, proposal, par = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local wait, reserve, bucket = tonumber(ARGV[5]) * 1000, tonumber(ARGV[6]) * 1000, tonumber(ARGV[7]) * 1000
local holder = ARGV[8]

local function text(number) return string.format('%.0f', number) end -- tostring would print 1.767e+15

-- A longer lease would outlive the quarantine that is to outlast it.
if wait > 0 and px * 1000 + reserve > wait then return {'TTL'} end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local replication = redis.call('INFO', 'replication')
local function field(name) return string.match(replication, '%f[%w_]' .. name .. ':([^\r\n]*)') or '' end
if field('role') ~= 'master' then
  return {'REPLICA', field('master_host') .. ':' .. field('master_port')}
end

-- The mark says for which life of this node's data grants are safe. `rid` changes at each restart and each promotion.
local rid, promo = field('master_replid'), field('master_replid2')
local seen = redis.call('HMGET', mark, 'par', 'rid', 'run', 'promo', 'till', 'why', 'fed')
local marked = seen[1] or seen[2] or seen[3]
-- Before anything is written: who comes with other figures must not change those that hold.
if marked and seen[1] ~= par then return {'MISMATCH', seen[1] or ''} end
-- What is not told cannot be told apart: nothing would look like another life.
if wait > 0 and rid == '' then return {'BLIND', 'master_replid'} end
local till, why = tonumber(seen[5] or ''), seen[6] or ''
if not marked or seen[2] ~= rid then
  local run = string.match(redis.call('INFO', 'server'), '%f[%w_]run_id:(%x+)') or ''
  local fed = string.match(redis.call('INFO', 'stats'), '%f[%w_]total_net_repl_input_bytes:(%d+)') or ''
  if wait > 0 and run == '' then return {'BLIND', 'run_id'} end
  if wait > 0 and fed == '' then return {'BLIND', 'total_net_repl_input_bytes'} end
  if marked and till and seen[3] == run and seen[4] == promo and seen[7] == fed then
    -- Still the same life: the node only gave up an idle replication backlog, and with it its id. A node that was a
    -- replica meanwhile looks the same, once it has given up the backlog from then, but it was fed by a master.
    redis.call('HSET', mark, 'rid', rid)
  else
    till, why = now + wait, marked and 'changed' or 'unmarked'
    redis.call('HSET', mark, 'par', par, 'rid', rid, 'run', run, 'promo', promo, 'fed', fed, 'till', text(till),
               'why', why)
  end
end
-- The node's clock was stepped back, or somebody wrote here by hand.
if not till or not (till <= now + wait) then
  till = now + wait
  redis.call('HSET', mark, 'till', text(till))
end
if now < till then return {'QUARANTINED', text(till), text(till - now), why} end

local last = redis.pcall('GET', counter)
local held = redis.pcall('GET', lock)
if type(last) == 'table' then return {'DAMAGED', counter} end
if type(held) == 'table' then return {'DAMAGED', lock} end
local c = 0
if last then c = tonumber(last) end
if not c or c < 0 or c ~= math.floor(c) then return {'DAMAGED', counter} end
-- No bump: contenders would outdo each other. The counter feeds what the client proposes next.
if held then return {'DENIED', text(c), redis.call('PTTL', lock), string.sub(held, 1, 32)} end

if not proposal or proposal ~= proposal or proposal < 0 or proposal > now + bucket then proposal = 0 end
-- The last term is a floor that survives the loss of the counter.
local n = math.max(c + 1, math.floor(proposal), now - now % bucket - bucket)
if n > 9007199254740990 then return {'RANGE'} end
-- In this order: a script that fails half-way keeps its first half, and a counter without its lock does no harm.
redis.call('SET', counter, text(n))
redis.call('SET', lock, nonce .. ' ' .. holder, 'PX', ARGV[2])
return {'GRANTED', text(n)}
