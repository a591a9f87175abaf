-- Says what the log holds.
-- Reply: ms and sequence of the last entry cut off, ms and sequence of the last appended.
return answer(function(_, meta)
  return { tag, 'done', meta('cut_ms'), meta('cut_seq'), meta('log_ms'), meta('log_seq') }
end)
