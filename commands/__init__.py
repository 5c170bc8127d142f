"""What commands share, and groups of commands of their own; cli.py gathers them into one application."""
