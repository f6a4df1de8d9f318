"""The built-in tasks: prompts and questions that are drawn, and the scores of answers."""
