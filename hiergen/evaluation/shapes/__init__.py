"""Evaluations of shapes: sets of meshes, and reconstructions by level."""
