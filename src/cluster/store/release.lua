-- Gives a node's lease up: whoever is told next takes its numbers off.
-- ARGV: 5 incarnation.
-- Reply: nothing more.
return answer(function()
  if redis.call('HEXISTS', LEASES, ARGV[5]) == 1 then
    redis.call('HSET', LEASES, ARGV[5], 0)
  end
  return { tag, 'done' }
end)
