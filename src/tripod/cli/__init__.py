"""The command line: arguments to configuration to one call."""
