"""Ways to run workers: this machine, Slurm, Ray. Each is one file."""
