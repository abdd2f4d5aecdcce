"""From many heads to one answer: the ensemble, the transductive refinement, EM-Dirichlet.

In: logits or probabilities of the heads, rows, a Task. Out: probabilities (N, K). Knows no paths, files or heads.
"""
