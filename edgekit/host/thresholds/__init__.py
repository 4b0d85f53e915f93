"""Thresholds of exits from validation data: MSDNet's family, nested ways through all thresholds, the best chain."""
