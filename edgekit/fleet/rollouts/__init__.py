"""Rollouts: a bundle to many boards in waves, each held against a gate. Makes jobs; sends and signs nothing."""
