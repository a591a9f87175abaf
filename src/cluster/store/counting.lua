-- Stands before the scripts that change totals: reading, changing and announcing them.

local ANNOUNCE_MS = 25
local MOST_ROOMS = 1000
local CHUNK = 200
local MOST = 4294967295

-- Reads the number of a node's last batch, of that batch's first claim, and how many rooms and
-- identities the node had.
local function applied_of(text)
  local number, claims, rooms, ids = string.match(text or '0 0 0 0', '^(%d+) (%d+) (%d+) (%d+)$')
  return whole(number, 'applied'), whole(claims, 'applied'), whole(rooms, 'applied'),
    whole(ids, 'applied')
end

-- Before the sums are changed: no key of theirs may have been deleted, evicted or cut since the
-- last change, or what is added now would drift from the truth for ever.
local function check_sums(meta)
  if redis.call('HLEN', TOTALS) ~= meta('rooms') or redis.call('HLEN', WHO) ~= meta('people') then
    error('malformed totals: some are gone')
  end
end

local function note_sums()
  redis.call('HSET', META, 'rooms', redis.call('HLEN', TOTALS), 'people', redis.call('HLEN', WHO))
end

-- The same for what one node has; also returns what `applied_of` does.
local function check_own(incarnation, mine, ids)
  local number, claims, rooms, identities = applied_of(redis.call('HGET', APPLIED, incarnation))
  if redis.call('HLEN', mine) ~= rooms or redis.call('SCARD', ids) ~= identities then
    error('malformed share: some is gone')
  end
  return number, claims
end

local function note_own(incarnation, number, claims, mine, ids)
  local rooms, identities = redis.call('HLEN', mine), redis.call('SCARD', ids)
  redis.call('HSET', APPLIED, incarnation,
    string.format('%.0f %.0f %.0f %.0f', number, claims, rooms, identities))
end

-- Reads a room's total: connections, unidentified, identities, members.
local function parts(text)
  if not text then
    return 0, 0, 0, 0
  end
  local c, u, d, m = string.match(text, '^(%d+) (%d+) (%d+) (%d+)$')
  if not c then
    error('malformed total')
  end
  c, u, d, m = tonumber(c), tonumber(u), tonumber(d), tonumber(m)
  if c > MOST or u + d > MOST or m > MOST then
    error('malformed total: beyond 32 bits')
  end
  return c, u, d, m
end

-- Reads what one node has in a room: connections, unidentified.
local function share(text)
  if not text then
    return 0, 0
  end
  local c, u = string.match(text, '^(%d+) (%d+)$')
  if not c then
    error('malformed share')
  end
  return tonumber(c), tonumber(u)
end

-- Adds to a room's total, which nothing can take below zero.
local function add_to_total(room, c, u, d, m)
  if c == 0 and u == 0 and d == 0 and m == 0 then
    return
  end
  local had_c, had_u, had_d, had_m = parts(redis.call('HGET', TOTALS, room))
  c, u, d, m = had_c + c, had_u + u, had_d + d, had_m + m
  if c < 0 or u < 0 or d < 0 or m < 0 then
    error('malformed total: below zero')
  elseif c == 0 and u == 0 and d == 0 and m == 0 then
    redis.call('HDEL', TOTALS, room)
  else
    redis.call('HSET', TOTALS, room, string.format('%.0f %.0f %.0f %.0f', c, u, d, m))
  end
end

-- Counts one more node with this identity in this room; true for the first.
local function appears(entry)
  local nodes = redis.call('HINCRBY', WHO, entry, 1)
  if nodes < 1 then
    error('malformed identity')
  end
  return nodes == 1
end

-- Counts one node less; true for the last.
local function disappears(entry)
  local nodes = redis.call('HINCRBY', WHO, entry, -1)
  if nodes < 0 then
    error('malformed identity')
  elseif nodes == 0 then
    redis.call('HDEL', WHO, entry)
  end
  return nodes == 0
end

local function is_member(fingerprint)
  return string.sub(fingerprint, 1, 1) == 'm'
end

-- Marks a room for the next announcement.
local function touch(room)
  redis.call('SADD', CHANGED, room)
end

-- Announces what is pending where the last announcement is 25 ms old. Returns in how many ms to try
-- again, -1 for nothing to do. The version goes up first, and everything is read before it is
-- removed: an error undoes nothing and must leave a gap that every node sees. By the server's own
-- clock: script time may stand still for as long as a small step back was.
local function announce(meta, clock)
  local claim, told = meta('claim'), meta('claim_told')
  if claim <= told and redis.call('SCARD', CHANGED) == 0 and redis.call('SCARD', FLUSHED) == 0 then
    return -1
  end
  local since = clock - meta('announced_at')
  if since >= 0 and since < ANNOUNCE_MS then
    return ANNOUNCE_MS - since
  end
  local version = meta('version') + 1
  redis.call('HSET', META, 'version', version, 'announced_at', clock)
  local lines = { string.format('1 %s %.0f', ARGV[2], version) }

  local flushed = redis.call('SRANDMEMBER', FLUSHED, MOST_ROOMS)
  for first = 1, #flushed, CHUNK do
    local last = math.min(first + CHUNK - 1, #flushed)
    local applied = redis.call('HMGET', APPLIED, unpack(flushed, first, last))
    for index = first, last do
      local text = applied[index - first + 1]
      if text then
        lines[#lines + 1] = string.format('a %s %.0f', flushed[index], (applied_of(text)))
      end
    end
    redis.call('SREM', FLUSHED, unpack(flushed, first, last))
  end

  if claim > told then
    local from = string.format('%.0f', told + 1)
    local last = told
    local entries = redis.call('XRANGE', CLAIMS, from, '+', 'COUNT', MOST_ROOMS)
    for _, entry in ipairs(entries) do
      last = claim_of(entry)
      lines[#lines + 1] = string.format('c %.0f %s %s', last, entry[2][1], entry[2][2])
    end
    if #entries < MOST_ROOMS then
      last = claim
    end
    redis.call('HSET', META, 'claim_told', last)
  end

  local rooms = redis.call('SRANDMEMBER', CHANGED, MOST_ROOMS)
  for first = 1, #rooms, CHUNK do
    local last = math.min(first + CHUNK - 1, #rooms)
    local totals = redis.call('HMGET', TOTALS, unpack(rooms, first, last))
    for index = first, last do
      local c, u, d, m = parts(totals[index - first + 1])
      lines[#lines + 1] = string.format('r %s %.0f %.0f %.0f', rooms[index], c, u + d, m)
    end
    redis.call('SREM', CHANGED, unpack(rooms, first, last))
  end

  lines[#lines + 1] = ''
  redis.call('PUBLISH', channels .. 'announcements', table.concat(lines, '\n'))
  if redis.call('SCARD', CHANGED) > 0 or redis.call('SCARD', FLUSHED) > 0
    or meta('claim') > meta('claim_told')
  then
    return ANNOUNCE_MS
  end
  return -1
end
