"""The command line `distillase`, recipes, and entry points for torchrun and SLURM."""
