"""One file per verb. The only place where host, agent, fleet and repo meet; each verb imports what it needs when run."""
