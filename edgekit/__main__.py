"""`python -m edgekit`: the command, where no script of that name is installed, such as in an agent's environment."""

from __future__ import annotations

from edgekit.cli.main import main

if __name__ == "__main__":
    main()
