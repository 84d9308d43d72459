"""Coarse-grained force fields of proteins: the prior's fit, the network's training, and the judgement of both."""
