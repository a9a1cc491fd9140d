"""Picture and sound as people have them: decoded once, kept in a memory-mapped cache.

One direction: files (:mod:`decode`) go clip by clip into shards (:mod:`shards`), all of them
(:mod:`prepare`) into a cache with a manifest (:mod:`manifest`, :mod:`cache`), from which batches
are read (:mod:`sources`). :mod:`dataset` holds what all datasets of such files share. A clip may
be one still picture.
"""
