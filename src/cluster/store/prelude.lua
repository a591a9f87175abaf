-- Stands before every script: finds the epoch in force, tells the time, and takes the script's
-- work only from a caller that knows both. Nothing else looks at a key before this has.
--
-- KEYS, the same in every script:
--   1 format   the number of this layout of keys; a node that meets a higher one keeps out
--   2 meta     hash: epoch, version (announcements in it), time (script time, ms), announced_at
--              (server time, ms), claim and claim_told (last claim made, last announced),
--              rooms and people (how many fields totals and who had), log_ms, log_seq (last position of the log), log_bytes, cut_ms, cut_seq (last position
--              cut off the log)
--   and in the keyspace of the epoch that the caller knows:
--   3 totals   hash: room -> connections unidentified identities members
--   4 who      hash: room \n fingerprint -> number of nodes that have it
--   5 leases   hash: incarnation -> end of its lease in script time, ms; 0 once given up
--   6 nodes    hash: incarnation -> synced since connections name, and on a second line the process
--   7 applied  hash: incarnation -> number of its last batch, number of that batch's first claim,
--              how many fields its mine and members its ids then had
--   8 changed  set: rooms to announce
--   9 flushed  set: incarnations that flushed since the last announcement
--   10 claims  stream: claim number -> connection, incarnation; the last 100,000
--   11 blocks  sorted set: name -> deadline in script time, ms
--   12 log     stream of messages
--   13 ...     what a script says
-- ARGV, the same in every script:
--   1 tag      comes back first in the reply
--   2 epoch    that the caller knows; empty where it knows none
--   3 version  the highest announcement it has seen in that epoch
--   4 offered  a random epoch, taken where a new one is due
--   5 ...      what a script says
local FORMAT, META, TOTALS, WHO, LEASES, NODES = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local APPLIED, CHANGED, FLUSHED, CLAIMS, BLOCKS, LOG = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local SHARED = 12

local LEASE_MS = 3000
-- From this step of the server's clock on, and after a silence as long, there is a new epoch.
local STEP_MS = 10000
-- A silence of all from here on is Redis' own: some node calls several times a second.
local SILENCE_MS = 1500
-- Nothing in an epoch's keyspace outlives its last user by more: every lease renews it, and a silence
-- of a sixth of it ends the epoch.
local KEEP_MS = 60000

local tag = ARGV[1]
-- Channels begin like the key of meta does.
local channels = string.sub(META, 1, -5)

-- Reads a whole number that Redis or a caller handed over.
local function whole(text, what)
  local number = text and tonumber(text)
  if not number or number < 0 or number > 9007199254740991 or number ~= math.floor(number) then
    error('malformed ' .. what)
  end
  return number
end

local function is_id(text)
  return type(text) == 'string' and #text == 16 and not string.find(text, '[^0-9a-f]')
    and text ~= '0000000000000000'
end

-- Reads the number of a claim; its first field is the connection, the value of that the node.
local function claim_of(entry)
  local connection, holder = entry[2][1], entry[2][2]
  if #connection ~= 48 or string.find(connection, '[^0-9a-f]') or not is_id(holder) then
    error('malformed claim')
  end
  return whole(string.match(entry[1], '^(%d+)%-0$'), 'claim')
end

local function keep(key)
  redis.call('PEXPIRE', key, KEEP_MS)
end

-- Starts the offered epoch: an empty keyspace.
local function begin(time)
  redis.call('DEL', META)
  for index = 3, SHARED do
    redis.call('UNLINK', KEYS[index])
  end
  redis.call('HSET', META, 'epoch', ARGV[4], 'version', 0, 'time', time)
end

-- True for what was found in Redis and cannot be; any other error is the server's own.
local function is_damage(why)
  return string.find(why, 'malformed', 1, true)
    or string.find(why, 'WRONGTYPE', 1, true)
    or string.find(why, 'attempt to', 1, true)
    or string.find(why, 'bad argument', 1, true)
    or string.find(why, 'not an integer', 1, true)
    or string.find(why, 'overflow', 1, true)
    or string.find(why, 'smaller than the target stream', 1, true)
    or string.find(why, 'exhausted the last possible ID', 1, true)
end

-- No lease runs while nobody can renew it: those that ran at `now` end so much later. Else whoever is
-- back first would take the numbers of all others off.
local function move_leases(now, silence)
  local leases = redis.call('HGETALL', LEASES)
  for index = 1, #leases, 2 do
    local ending = whole(leases[index + 1], 'lease')
    if ending > now then
      redis.call('HSET', LEASES, leases[index], ending + silence)
    end
  end
end

-- Answers the call with what `work(now, meta, clock)` returns: `now` is script time in ms, `meta`
-- reads a number of meta, `clock` is the server's own time in ms. Whatever it finds that cannot be
-- starts a new epoch, so that no damage lasts and no half-done work counts.
local function answer(work)
  local format = redis.pcall('GET', FORMAT)
  format = type(format) == 'string' and tonumber(format) or 0
  if format > 1 then
    return { tag, 'format', string.format('%.0f', format) }
  elseif format ~= 1 then
    redis.call('SET', FORMAT, 1)
  end

  local time = redis.call('TIME')
  local clock = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local known = redis.pcall('HMGET', META, 'epoch', 'version', 'time')
  local epoch = known[1]
  local sound, version, now = pcall(function()
    return whole(known[2], 'version'), whole(known[3], 'time')
  end)
  sound = sound and is_id(epoch)
  local lowered = sound and epoch == ARGV[2] and version < tonumber(ARGV[3])
  if not sound or lowered or math.abs(clock - now) >= STEP_MS then
    begin(clock)
    return { tag, 'epoch', ARGV[4], 0 }
  end
  local silence = clock - now
  if epoch ~= ARGV[2] then
    -- Leases are moved by the first who knows where they are, and sees the silence for that.
    if silence > 0 and silence < SILENCE_MS then
      redis.call('HSET', META, 'time', clock)
    end
    return { tag, 'epoch', epoch, version }
  end

  local function meta(field)
    return whole(redis.call('HGET', META, field) or 0, field)
  end
  local ok, reply = pcall(function()
    if silence >= SILENCE_MS then
      move_leases(now, silence)
    end
    now = math.max(now, clock)
    redis.call('HSET', META, 'time', now)
    return work(now, meta, clock)
  end)
  if ok then
    return reply
  end
  local why = type(reply) == 'table' and reply.err or tostring(reply)
  if is_damage(why) then
    begin(clock)
    return { tag, 'malformed', why }
  end
  return redis.error_reply(why)
end
