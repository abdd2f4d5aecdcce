"""Methods on finished rows, one file each: features, labels and text rows in, logits out.

May import task and backend.numerics; knows no paths, images, configs, files, nor another method's answers.
"""
