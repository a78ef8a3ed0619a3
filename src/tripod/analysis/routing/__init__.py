"""Which experts of a sparse model take which tokens: pure functions on routed tokens, and the study that asks them of checkpoints."""
