-- Announces what is pending.
-- Reply: in how many ms to call again, -1 for not at all.
return answer(function(_, meta, clock)
  return { tag, 'done', announce(meta, clock) }
end)
