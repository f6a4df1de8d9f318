"""Scores with their controls: lm-eval's tasks, tool calls and tasks from files."""
