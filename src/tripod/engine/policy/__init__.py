"""Who runs, and how many tokens each: pure, deterministic decisions. No torch, no clock, no input or output."""
