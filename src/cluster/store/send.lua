-- Publishes on one channel; knows no epoch.
-- ARGV: 1 tag; 2 channel; 3 bytes.
-- Reply: nothing more.
redis.call('PUBLISH', ARGV[2], ARGV[3])
return { ARGV[1], 'done' }
