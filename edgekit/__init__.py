"""edgekit fits networks to small boards, ships and runs them inside a budget. Imports nothing."""

__version__ = "0.1.0"
