"""What `bench/gpu.py` runs, a module for each kind of measurement."""
