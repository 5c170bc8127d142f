"""The steps of a run, one file each: what a command of cli.py calls."""
