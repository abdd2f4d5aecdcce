"""What lies on disk: files written whole or not at all, arrays and JSON records, the cache of rows."""
