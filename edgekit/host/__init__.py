"""The converter: a model in, a bundle that fits one board out. Never imported by what a board installs."""
