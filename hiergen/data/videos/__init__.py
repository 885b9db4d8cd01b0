"""Videos: `files` lists and writes them, `decoding` reads their frames, `dataset` holds clips in memory, `moving_digits` is the embedded set."""
