"""Images and sentences as feature rows: encoded with a cache and workers, or read from a file.

In: paths, sentences, an Encoder or a .npz. Out: unit rows (N, D). May import encoders, data, storage, backend.
"""
