-- Says what the log holds.
-- Reply: ms and sequence of the last entry cut off, ms and sequence of the last appended.
return answer(function(_, meta)
  local cut_ms, cut_seq = position(meta('cut_ms'), meta('cut_seq'))
  local log_ms, log_seq = position(meta('log_ms'), meta('log_seq'))
  return { tag, 'done', cut_ms, cut_seq, log_ms, log_seq }
end)
