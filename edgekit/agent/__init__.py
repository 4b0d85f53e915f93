"""The daemon on the board: fetches, verifies, runs, measures, reports. Serves whatever the network does."""
