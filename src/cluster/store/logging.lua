-- Stands before the scripts that write or cut the log of messages.

local LOG_MS = 300000
local LOG_BYTES = 67108864
-- What an entry costs beside its text, roughly.
local ENTRY_BYTES = 160
-- No position is at so many ms, in the year 2248; and one has room for so many sequences in a ms.
local MOST_MS = 8796093022208
local SEQUENCES = 1048576

-- Checks that ms and sequence make a position.
local function position(ms, seq)
  ms, seq = whole(ms, 'position'), whole(seq, 'position')
  if ms >= MOST_MS or seq >= SEQUENCES then
    error('malformed position')
  end
  return ms, seq
end

-- Reads the fields of an entry, and its cost.
local function entry_of(fields)
  local entry, bytes = {}, ENTRY_BYTES
  for index = 1, #fields, 2 do
    entry[fields[index]] = fields[index + 1]
    bytes = bytes + #fields[index + 1]
  end
  return entry, bytes
end

-- Cuts what is older than 5 min or beyond 64 MiB off the log, `most` entries at most.
local function cut_log(now, meta, most)
  local held = meta('log_bytes')
  local ms, seq
  local cut = 0
  while cut < most do
    -- The first alone: mostly it may stay, and an entry can be large.
    local from, count = '-', 1
    if ms then
      from, count = '(' .. ms .. '-' .. seq, 20
    end
    local entries = redis.call('XRANGE', LOG, from, '+', 'COUNT', count)
    if #entries == 0 then
      held = 0
      redis.call('HSET', META, 'log_bytes', 0)
      break
    end
    local stop = false
    for _, found in ipairs(entries) do
      local entry, bytes = entry_of(found[2])
      local at = tonumber(entry.at) or 0
      if cut >= most or (at + LOG_MS > now and held <= LOG_BYTES) then
        stop = true
        break
      end
      ms, seq = string.match(found[1], '^(%d+)%-(%d+)$')
      position(ms, seq)
      held = math.max(held - bytes, 0)
      cut = cut + 1
    end
    if stop then
      break
    end
  end
  if ms then
    redis.call('XTRIM', LOG, 'MINID', '=', ms .. '-' .. string.format('%.0f', tonumber(seq) + 1))
    redis.call('HSET', META, 'log_bytes', held, 'cut_ms', ms, 'cut_seq', seq)
  end
end
