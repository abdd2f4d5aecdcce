"""Methods that move a tower, or learn from more than finished rows: one file a method.

In: images at some depth of a tower, tokens, labels. Out: small arrays that change a CLIP, or logits like a head's.
May import clip, encoders, features.activations, backend, storage, task, rows.base, rows.training and the ensemble's
temperature; no paths of images, no configs.
"""
