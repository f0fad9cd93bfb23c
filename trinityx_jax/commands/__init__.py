"""The commands that use any model, one a file: `Options`, and `run(options)`."""
