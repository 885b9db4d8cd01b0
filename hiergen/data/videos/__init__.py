"""Videos: `files` reads and writes them, `dataset` holds clips in memory, `moving_digits` is the embedded set."""
