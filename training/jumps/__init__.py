"""Training of jump networks: windows of trajectories, or forces alone, in the common loop."""
