"""Images: `files` reads one, `modes` brings it to 8 bits per color, `pixels` makes numbers of it, `in_memory` and `on_disk` are datasets.

`archives`, `shards` and `idx` are further places where pictures on disk lie, `digits` is the embedded set, and `features` caches what an encoder sees.
"""
