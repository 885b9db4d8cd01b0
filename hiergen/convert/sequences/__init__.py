"""Official checkpoints of models of sequences, one file per family."""
