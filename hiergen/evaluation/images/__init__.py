"""Evaluations of images: reconstructions, generations, and scores by number of levels or guidance scale."""
