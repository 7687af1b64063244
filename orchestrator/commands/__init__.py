"""The commands on sweeps, one module for each kind, and what the command line says of itself."""
