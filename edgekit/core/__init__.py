"""Nouns, formats and pure rules. Standard library only; no I/O beyond reading what it is handed."""
