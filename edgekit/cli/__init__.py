"""One file per verb: the only place where host, agent, fleet and repo meet. Imports what it needs when run."""
