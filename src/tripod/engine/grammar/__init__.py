"""Structured output: grammars compiled beside the step loop, followed token by token, and turned into masks over the logits."""
