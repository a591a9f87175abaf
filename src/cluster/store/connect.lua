-- Learns the epoch in force, and starts one where there is none.
-- Reply: version.
return answer(function(_, meta)
  return { tag, 'done', meta('version') }
end)
