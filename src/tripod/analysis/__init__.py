"""Studies of checkpoints: what a suite of runs teaches. A study turns runs into a tidy table and a picture."""
