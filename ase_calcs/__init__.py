"""What an ASE script imports: graphs, networks, calculators, dynamics, teachers, model files."""
