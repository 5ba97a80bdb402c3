"""The command line: the only place that draws or exits."""
