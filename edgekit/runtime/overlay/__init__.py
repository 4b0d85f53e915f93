"""Binary networks in programmable logic: the design of an overlay, its models, its simulation and its driver."""
