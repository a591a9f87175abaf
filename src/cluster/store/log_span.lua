-- Says what the log holds, and how far nodes knew the log of an epoch before.
-- KEYS: 2 meta: was_ms and was_seq of each epoch before, the highest position that a caller knew.
-- ARGV: 5 an epoch before, or empty; 6 and 7 the highest position in it that the caller knows.
-- Reply: ms and sequence of the last entry cut off, of the last appended, and of the highest
--        position in the epoch before that any caller knows.
return answer(function(_, meta)
  local cut_ms, cut_seq = position(meta('cut_ms'), meta('cut_seq'))
  local log_ms, log_seq = position(meta('log_ms'), meta('log_seq'))
  local was_ms, was_seq = 0, 0
  if ARGV[5] ~= '' then
    local ms_field, seq_field = 'was_ms ' .. ARGV[5], 'was_seq ' .. ARGV[5]
    was_ms, was_seq = position(meta(ms_field), meta(seq_field))
    local ms, seq = position(ARGV[6], ARGV[7])
    if ms > was_ms or (ms == was_ms and seq > was_seq) then
      was_ms, was_seq = ms, seq
      redis.call('HSET', META, ms_field, ARGV[6], seq_field, ARGV[7])
    end
  end
  return { tag, 'done', cut_ms, cut_seq, log_ms, log_seq, was_ms, was_seq }
end)
