"""Evaluations of clips."""
