-- Applies one batch of a node's own absolute numbers to the totals.
-- KEYS: 13 mine (hash: room -> connections unidentified) and 14 ids (set: room \n fingerprint) of
--       the node; 15 mine and 16 ids of the incarnation that it resyncs from, or again its own.
-- ARGV: 5 incarnation; 6 the incarnation that it resyncs from, or empty; 7 number of the batch;
--       8 done: 1 ends a resync; 9 number of claims, then each claimed connection; then the number
--       of rooms, then per room: name, connections, unidentified, number of identities that
--       appeared, each, number of those that disappeared, each.
-- Reply: 'applied', number of the batch's first claim or 0, in how many ms to announce or -1; or
--        'resync'.
local MOST_CLAIMS = 100000

return answer(function(now, meta, clock)
  local me, older = ARGV[5], ARGV[6]
  local MINE, IDS, OLDER_MINE, OLDER_IDS = KEYS[13], KEYS[14], KEYS[15], KEYS[16]
  local resyncs = older ~= ''
  local number = whole(ARGV[7], 'number')
  if whole(redis.call('HGET', LEASES, me) or 0, 'lease') <= now then
    return { tag, 'done', 'resync' }
  end
  local last, last_claims = check_own(me, MINE, IDS)
  if number == last then
    return { tag, 'done', 'applied', last_claims, announce(meta, clock) }
  elseif number ~= last + 1 then
    return { tag, 'done', 'resync' }
  end

  check_sums(meta)
  local older_last, older_claims
  if resyncs then
    older_last, older_claims = check_own(older, OLDER_MINE, OLDER_IDS)
  end

  local at = 9
  local function take()
    at = at + 1
    return ARGV[at - 1] or error('short batch')
  end

  local claims = tonumber(take())
  local claim = meta('claim')
  local claims_from = claims > 0 and claim + 1 or 0
  for _ = 1, claims do
    claim = claim + 1
    redis.call('XADD', CLAIMS, 'MAXLEN', '~', MOST_CLAIMS, string.format('%.0f-0', claim), take(), me)
  end
  if claims > 0 then
    redis.call('HSET', META, 'claim', claim)
    keep(CLAIMS)
  end

  for _ = 1, tonumber(take()) do
    local room, c, u = take(), tonumber(take()), tonumber(take())
    local had_c, had_u = share(redis.call('HGET', MINE, room))
    local moved = false
    if resyncs then
      local text = redis.call('HGET', OLDER_MINE, room)
      if text then
        local older_c, older_u = share(text)
        had_c, had_u = had_c + older_c, had_u + older_u
        redis.call('HDEL', OLDER_MINE, room)
        moved = true
      end
    end
    local touched = c ~= had_c or u ~= had_u
    if touched or moved then
      if c == 0 and u == 0 then
        redis.call('HDEL', MINE, room)
      else
        redis.call('HSET', MINE, room, string.format('%.0f %.0f', c, u))
      end
    end

    local d, m = 0, 0
    for _ = 1, tonumber(take()) do
      local fingerprint = take()
      local entry = room .. '\n' .. fingerprint
      if redis.call('SADD', IDS, entry) == 1 then
        if resyncs and redis.call('SREM', OLDER_IDS, entry) == 1 then
          -- Moved: this node had it before and has it now.
        else
          touched = true
          if appears(entry) then
            d = d + 1
            m = m + (is_member(fingerprint) and 1 or 0)
          end
        end
      end
    end
    for _ = 1, tonumber(take()) do
      local fingerprint = take()
      local entry = room .. '\n' .. fingerprint
      local had = redis.call('SREM', IDS, entry)
      if had == 0 and resyncs then
        had = redis.call('SREM', OLDER_IDS, entry)
      end
      if had == 1 then
        touched = true
        if disappears(entry) then
          d = d - 1
          m = m - (is_member(fingerprint) and 1 or 0)
        end
      end
    end

    add_to_total(room, c - had_c, u - had_u, d, m)
    -- Announced also where the total stayed as it was: an identity that another node has too came
    -- or went, and this node has to learn the total in which its share is the new one.
    if touched then
      touch(room)
    end
  end

  note_own(me, number, claims_from, MINE, IDS)
  if resyncs and redis.call('HEXISTS', APPLIED, older) == 1 then
    note_own(older, older_last, older_claims, OLDER_MINE, OLDER_IDS)
  end
  note_sums()
  redis.call('SADD', FLUSHED, me)
  if ARGV[8] == '1' then
    local card = redis.call('HGET', NODES, me) or error('malformed node')
    redis.call('HSET', NODES, me, '1' .. string.sub(card, 2))
    if resyncs and redis.call('HEXISTS', LEASES, older) == 1 then
      redis.call('HSET', LEASES, older, 0)
    end
  end
  for _, key in ipairs({ TOTALS, WHO, APPLIED, CHANGED, FLUSHED, MINE, IDS }) do
    keep(key)
  end
  return { tag, 'done', 'applied', claims_from, announce(meta, clock) }
end)
