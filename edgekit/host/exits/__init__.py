"""Early exits for a finished network: where to cut it, and heads that answer there, fitted without labels."""
