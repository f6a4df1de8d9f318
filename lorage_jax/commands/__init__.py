"""One file for each `lorage` command, and the options of them all."""
