// A seller's program for tests of isolation.
module vitrine.dev/devcluster/hostile

go 1.26.0
