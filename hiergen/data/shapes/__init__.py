"""Shapes: `building` turns one source into one record, `preparation` a folder of them, and `dataset` draws samples from records, as `config` says.

`records` is the file format, `views` renders its pictures, `importers` reads sets that others prepared, and `procedural` is the embedded set.
"""
