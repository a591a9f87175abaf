-- Makes or renews a node's lease, and says who else holds one.
-- KEYS: 13 mine and 14 ids of the node; 15 mine and 16 ids of the incarnation before it, or again
--       its own.
-- ARGV: 5 incarnation; 6 the incarnation that it resyncs from, or empty; 7 new: 1 makes the lease,
--       0 only renews one that runs; 8 since, ms; 9 connections; 10 synced: 1, not yet: 0,
--       or no more: 2; 11 name;
--       12 process, or empty.
-- Reply: held 1 or 0; now, ms; version; number of the last batch applied; in how many ms to
--        announce, -1 for not at all; live nodes: incarnation, ms left, synced, since,
--        connections, name, process or empty, one after the other; lapsed incarnations, at most 16.
local MOST_LAPSED = 16
local MOST_CUT = 200

return answer(function(now, meta, clock)
  local me, older = ARGV[5], ARGV[6]
  local ending = whole(redis.call('HGET', LEASES, me) or 0, 'lease')
  local held = ARGV[7] == '1' or ending > now
  if held then
    local synced = ARGV[10]
    local card = redis.call('HGET', NODES, me)
    if synced == '2' then
      synced = '0'
    elseif card and string.sub(card, 1, 1) == '1' then
      synced = '1'
    end
    redis.call('HSET', LEASES, me, now + LEASE_MS)
    -- Nodes of before the process was told take it for a part of the name.
    local process = ARGV[12] ~= '' and '\n' .. ARGV[12] or ''
    redis.call('HSET', NODES, me,
      synced .. ' ' .. ARGV[8] .. ' ' .. ARGV[9] .. ' ' .. ARGV[11] .. process)
    -- What it resyncs from stays until it has been moved; once given up it does not come back.
    if older ~= '' and whole(redis.call('HGET', LEASES, older) or 0, 'lease') > 0 then
      redis.call('HSET', LEASES, older, now + LEASE_MS)
    end
    for index = 13, 16 do
      keep(KEYS[index])
    end
  end

  redis.call('ZREMRANGEBYSCORE', BLOCKS, '-inf', now)
  cut_log(now, meta, MOST_CUT)
  local wait = announce(meta, clock)

  local live, lapsed = {}, {}
  local leases = redis.call('HGETALL', LEASES)
  for index = 1, #leases, 2 do
    local incarnation = leases[index]
    local left = whole(leases[index + 1], 'lease') - now
    if left > 0 then
      local card = redis.call('HGET', NODES, incarnation) or ''
      local synced, since, connections, name = string.match(card, '^([01]) (%d+) (%d+) (.*)$')
      if not synced or not is_id(incarnation) then
        error('malformed node')
      end
      live[#live + 1] = incarnation
      live[#live + 1] = math.min(left, LEASE_MS)
      live[#live + 1] = synced
      live[#live + 1] = whole(since, 'node')
      live[#live + 1] = whole(connections, 'node')
      local process = string.match(name, '\n(%x+)$')
      if is_id(process) then
        name = string.sub(name, 1, -#process - 2)
      end
      live[#live + 1] = name
      live[#live + 1] = is_id(process) and process or ''
    elseif not is_id(incarnation) then
      error('malformed lease')
    elseif #lapsed < MOST_LAPSED then
      lapsed[#lapsed + 1] = incarnation
    end
  end
  for index = 3, SHARED do
    keep(KEYS[index])
  end

  local number = applied_of(redis.call('HGET', APPLIED, me))
  return { tag, 'done', held and 1 or 0, now, meta('version'), number, wait, live, lapsed }
end)
