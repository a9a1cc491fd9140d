"""Single pictures as people have them: decoded once, kept in a memory-mapped cache.

As :mod:`mmbench.data.media` for clips, and smaller: files (:mod:`decode`) go picture by picture
into shards (:mod:`shards`), all of them (:mod:`prepare`) into a cache with a manifest
(:mod:`manifest`, :mod:`cache`), from which batches are read (:mod:`sources`). Lists with titles:
:mod:`titles`. Pillow decodes, not FFmpeg: it tells a cut JPEG from a whole one, and knows the CMYK
JPEGs that the web is full of.
"""
