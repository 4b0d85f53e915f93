"""What decides at exits and has a state: one kind a file. The door to them is runtime/policy.py."""
