"""Schedules carried out: ragged batch, model over paged keys and values, logits, sampled tokens."""
