-- Reads a page of the blocks in force.
-- ARGV: 5 cursor, 0 to begin; 6 about how many.
-- Reply: next cursor, 0 at the end; name and ms left, one after the other.
return answer(function(now)
  local page = redis.call('ZSCAN', BLOCKS, ARGV[5], 'COUNT', ARGV[6])
  local blocks = {}
  for index = 1, #page[2], 2 do
    local left = whole(page[2][index + 1], 'block') - now
    if left > 0 then
      blocks[#blocks + 1] = page[2][index]
      blocks[#blocks + 1] = left
    end
  end
  return { tag, 'done', page[1], blocks }
end)
