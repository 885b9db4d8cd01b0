"""Images: `files` reads one, `pixels` makes numbers of it, `in_memory` and `on_disk` are datasets.

`archives` and `idx` are further places where pictures on disk lie, `digits` is the embedded set, and `features` caches what an encoder sees.
"""
