"""Benchmarks of generators: how long each takes to sample, beside a plain transcription of the official loop on the same weights."""
