"""How modules are run: modes, mixed precision, gradient checkpointing, and what several processes share."""
