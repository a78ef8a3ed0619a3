"""Programs that measure: seeded, repeated, next to the peers, with their raw results kept in `results/`."""
