"""What lies on disk: files written whole or not at all, arrays and JSON records, the cache of rows.

In and out: bytes, arrays, plain dictionaries. The bottom layer: it imports errors and console alone.
"""
