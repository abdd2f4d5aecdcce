"""Methods on finished rows, one file each: features, labels and text rows in, logits out.

They import task, backend and what all methods share: no encoder, path, flag, nor another method's answers.
"""
