"""Campaigns: many seeded tries to break one promise. Their raw logs are kept in `benchmarks/results/`."""
