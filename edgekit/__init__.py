"""edgekit fits networks to small boards, ships them signed, runs them inside a budget. Imports nothing by itself."""

__version__ = "0.1.0"
