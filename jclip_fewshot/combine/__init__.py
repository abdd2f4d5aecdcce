"""From many heads to one answer (N, K): the ensemble, the transductive refinement, EM-Dirichlet."""
