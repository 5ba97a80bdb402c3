"""Models: plain modules that know nothing of formats."""
