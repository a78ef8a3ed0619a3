"""Training suites of models: data whose every batch can be read back, recipes, checkpoints and their series."""
