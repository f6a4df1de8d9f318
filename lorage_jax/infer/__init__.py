"""Answers and likelihoods: chat, generation, sampling, scoring, and requests that share a batch."""
