"""Contract suites and doubles that anyone can import."""
