"""Methods that move a tower, or learn from more than finished rows, one file each: no paths of images, no flags."""
