-- Appends a message to the log, once.
-- KEYS: 13 once: what was published under this key in the last 5 min.
-- ARGV: 5 room; 6 event; 7 data; 8 origin; 9 digest; 10 and 11 the highest position that the caller
--       knows, ms and sequence; 12 once: stands in the entry; empty where KEYS[13] does not count.
-- Reply: 'ordered' or 'duplicate', ms, sequence; or 'conflict'.
local MOST_CUT = 1000

return answer(function(now, meta)
  local ONCE = KEYS[13]
  local is_once = ARGV[12] ~= ''
  if is_once then
    local had = redis.call('GET', ONCE)
    if had then
      local ms, seq, digest = string.match(had, '^(%d+) (%d+) (%x+)$')
      position(ms, seq)
      if digest ~= ARGV[9] then
        return { tag, 'done', 'conflict' }
      end
      return { tag, 'done', 'duplicate', ms, seq }
    end
  end

  local ms, seq = now, 0
  local function after(other_ms, other_seq)
    if other_ms > ms or (other_ms == ms and other_seq >= seq) then
      ms, seq = other_ms, other_seq + 1
      if seq >= SEQUENCES then
        ms, seq = ms + 1, 0
      end
    end
  end
  after(position(meta('log_ms'), meta('log_seq')))
  after(position(ARGV[10], ARGV[11]))
  position(ms, seq)

  local fields = { 'room', ARGV[5], 'event', ARGV[6], 'data', ARGV[7], 'origin', ARGV[8], 'at', string.format('%.0f', now) }
  if is_once then
    fields[#fields + 1] = 'once'
    fields[#fields + 1] = ARGV[12]
  end
  local _, bytes = entry_of(fields)
  local added = redis.pcall('XADD', LOG, string.format('%.0f-%.0f', ms, seq), unpack(fields))
  if type(added) == 'table' then
    if string.find(added.err, 'exhausted the last possible ID', 1, true) then
      error('malformed log: ' .. added.err)
    end
    error(added)
  end
  redis.call('HSET', META, 'log_ms', ms, 'log_seq', seq, 'log_bytes', meta('log_bytes') + bytes)
  keep(LOG)
  if is_once then
    redis.call('SET', ONCE, string.format('%.0f %.0f %s', ms, seq, ARGV[9]), 'PX', LOG_MS)
  end
  cut_log(now, meta, MOST_CUT)
  return { tag, 'done', 'ordered', string.format('%.0f', ms), string.format('%.0f', seq) }
end)
