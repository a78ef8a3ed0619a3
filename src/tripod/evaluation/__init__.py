"""One data set, one report with confidence intervals."""
