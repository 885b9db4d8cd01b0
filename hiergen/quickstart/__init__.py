"""The main job on embedded data, from nothing to pictures and a report, one module a kind of data."""
