"""Tasks with right answers: what is asked of a model, how its replies are judged, and the engine that is asked in batches."""
