// The seller's program of the leak test.
module vitrine.dev/devcluster/hostile

go 1.26.0
