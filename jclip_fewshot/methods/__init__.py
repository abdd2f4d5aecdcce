"""Everything that learns from a task and answers images, in three rooms that say what a method may touch.

rows: finished rows only. towers: encoders and activations. unlabelled: images without labels.
"""
