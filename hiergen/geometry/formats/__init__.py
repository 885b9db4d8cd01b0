"""Readers of mesh files, one file per format: bytes in, polygons out, and every loss in a sentence.

`hiergen.geometry.meshes.load_mesh` is the way in; it picks the reader, cuts the polygons into triangles and cleans them.
"""
