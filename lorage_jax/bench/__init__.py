"""Measurements of time, memory and arithmetic, one file for each `lorage bench` command."""
