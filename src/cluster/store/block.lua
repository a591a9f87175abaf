-- Blocks connections and identities, the longer time winning, and tells every node.
-- ARGV: 5 ... name and how long in ms, one after the other.
-- Reply: nothing more.
local MOST_BLOCKS = 100000

return answer(function(now)
  local lines = { '1' }
  for index = 5, #ARGV, 2 do
    local name = ARGV[index]
    redis.call('ZADD', BLOCKS, 'GT', now + whole(ARGV[index + 1], 'time'), name)
    local deadline = whole(redis.call('ZSCORE', BLOCKS, name), 'block')
    lines[#lines + 1] = string.format('%.0f %s', deadline - now, name)
  end
  redis.call('ZREMRANGEBYSCORE', BLOCKS, '-inf', now)
  local over = redis.call('ZCARD', BLOCKS) - MOST_BLOCKS
  if over > 0 then
    redis.call('ZPOPMIN', BLOCKS, over)
  end
  keep(BLOCKS)
  lines[#lines + 1] = ''
  redis.call('PUBLISH', channels .. 'blocks', table.concat(lines, '\n'))
  return { tag, 'done' }
end)
