"""Proteins with one bead per residue, at its Cα. What scripts need is in `distillase.ase_calcs`."""
