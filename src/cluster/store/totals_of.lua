-- Reads the totals of the rooms named, 0 for rooms without.
-- ARGV: 5 incarnation of the reader; 6 ... rooms.
-- Reply: as of totals, with cursor 0.
return answer(function(_, meta)
  local rooms = {}
  for first = 6, #ARGV, CHUNK do
    local last = math.min(first + CHUNK - 1, #ARGV)
    local totals = redis.call('HMGET', TOTALS, unpack(ARGV, first, last))
    for index = first, last do
      local c, u, d, m = parts(totals[index - first + 1])
      rooms[#rooms + 1] = ARGV[index]
      rooms[#rooms + 1] = c
      rooms[#rooms + 1] = u + d
      rooms[#rooms + 1] = m
    end
  end
  local number = applied_of(redis.call('HGET', APPLIED, ARGV[5]))
  return { tag, 'done', '0', meta('version'), number, rooms }
end)
