"""Pipelines as data, and executions that survive a crash: typed graph, journal, effects."""
