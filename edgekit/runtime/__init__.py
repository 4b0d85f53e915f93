"""A bundle in, an Answer out: sessions, policies, data, sensors, measuring. No network, no daemon state."""
