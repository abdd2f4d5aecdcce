"""Images and sentences as unit feature rows: encoded with a cache and workers, or read from a file."""
