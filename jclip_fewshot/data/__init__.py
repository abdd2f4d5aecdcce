"""The data set and the answer: class lists, images, prompts, chosen shots, decoded pixels, result.txt."""
