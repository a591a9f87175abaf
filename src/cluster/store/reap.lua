-- Takes a part of a lapsed node's numbers off the totals.
-- KEYS: 13 mine and 14 ids of the lapsed incarnation.
-- ARGV: 5 the incarnation; 6 how many identities and rooms at most.
-- Reply: 1 where more is left, else 0, also for a lease that runs.
return answer(function(now, meta, clock)
  local lapsed, steps = ARGV[5], whole(ARGV[6], 'steps')
  local MINE, IDS = KEYS[13], KEYS[14]
  if whole(redis.call('HGET', LEASES, lapsed) or 0, 'lease') > now then
    return { tag, 'done', 0 }
  end

  check_sums(meta)
  local number, claims = check_own(lapsed, MINE, IDS)
  local identities, members, rooms = {}, {}, {}
  local gone = redis.call('SPOP', IDS, steps)
  for _, entry in ipairs(gone) do
    local room, fingerprint = string.match(entry, '^([^\n]+)\n(.*)$')
    if not room then
      error('malformed identity')
    end
    rooms[room] = true
    if disappears(entry) then
      identities[room] = (identities[room] or 0) + 1
      if is_member(fingerprint) then
        members[room] = (members[room] or 0) + 1
      end
    end
  end
  for room in pairs(rooms) do
    add_to_total(room, 0, 0, -(identities[room] or 0), -(members[room] or 0))
    touch(room)
  end

  if #gone < steps then
    local shares = redis.call('HRANDFIELD', MINE, steps - #gone, 'WITHVALUES')
    for index = 1, #shares, 2 do
      local room = shares[index]
      local c, u = share(shares[index + 1])
      add_to_total(room, -c, -u, 0, 0)
      redis.call('HDEL', MINE, room)
      touch(room)
    end
  end
  keep(CHANGED)
  keep(TOTALS)

  note_sums()
  local more = redis.call('SCARD', IDS) > 0 or redis.call('HLEN', MINE) > 0
  if more then
    note_own(lapsed, number, claims, MINE, IDS)
  else
    redis.call('HDEL', LEASES, lapsed)
    redis.call('HDEL', NODES, lapsed)
    redis.call('HDEL', APPLIED, lapsed)
    redis.call('SREM', FLUSHED, lapsed)
  end
  announce(meta, clock)
  return { tag, 'done', more and 1 or 0 }
end)
