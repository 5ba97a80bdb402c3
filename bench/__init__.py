"""Measurements: `python -m bench.cast`, `python -m bench.step`, `python -m bench.minilm`. Results in RESULTS.md."""
