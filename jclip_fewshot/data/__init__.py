"""The data set and the answer: class lists, images, prompts, chosen shots, result.txt.

In: folders, lists and image files. Out: names, paths, labels, decoded pixels, and the submission. May import
storage, console, errors and clip.preprocess; sees features only as rows handed in.
"""
