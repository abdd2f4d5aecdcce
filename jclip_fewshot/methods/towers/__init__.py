"""Methods that move a tower, or learn from more than finished rows, one file each.

In: activations at some depth of a tower, tokens, labels. Out: small arrays that change a CLIP, or logits. They import
clip, encoders, features.activations, and rows for its formulas: no paths of images, no flags.
"""
