-- Reads claims in their order.
-- ARGV: 5 the number after which; 6 how many at most.
-- Reply: number, connection, incarnation, one after the other.
return answer(function()
  local after = whole(ARGV[5], 'number')
  local claims = {}
  local entries = redis.call('XRANGE', CLAIMS, string.format('%.0f', after + 1), '+', 'COUNT', ARGV[6])
  for _, entry in ipairs(entries) do
    claims[#claims + 1] = claim_of(entry)
    claims[#claims + 1] = entry[2][1]
    claims[#claims + 1] = entry[2][2]
  end
  return { tag, 'done', claims }
end)
