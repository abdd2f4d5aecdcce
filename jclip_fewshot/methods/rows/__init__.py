"""Methods on finished rows, one file each: features, labels and text rows in, logits out."""
