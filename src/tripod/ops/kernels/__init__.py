"""Fast twins of the operations: a folder for each kind of machine. Which one runs is chosen once, where the engine is built, and logged."""
