"""One file an engine, each run in a process (and, for peers, an interpreter) of its own."""
