"""Depth and width as data: which block of a transformer runs when, with what difference to it, and on which part of the stream."""
