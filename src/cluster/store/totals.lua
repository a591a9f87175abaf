-- Reads a page of the totals of all rooms.
-- ARGV: 5 incarnation of the reader; 6 cursor, 0 to begin; 7 about how many.
-- Reply: next cursor, 0 at the end; version; number of the reader's last batch applied; rooms:
--        name, connections, viewers, members, one after the other.
return answer(function(_, meta)
  local page = redis.call('HSCAN', TOTALS, ARGV[6], 'COUNT', ARGV[7])
  local rooms = {}
  for index = 1, #page[2], 2 do
    local room = page[2][index]
    local c, u, d, m = parts(page[2][index + 1])
    rooms[#rooms + 1] = room
    rooms[#rooms + 1] = c
    rooms[#rooms + 1] = u + d
    rooms[#rooms + 1] = m
  end
  local number = applied_of(redis.call('HGET', APPLIED, ARGV[5]))
  return { tag, 'done', page[1], meta('version'), number, rooms }
end)
