"""`lorage bench`: one module per measurement, each with `run(options)`."""
