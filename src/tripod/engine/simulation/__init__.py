"""The policy on a simulated executor: a day of a real trace in a minute, on a machine that need not be there."""
