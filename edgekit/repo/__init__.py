"""The publisher's half of The Update Framework: init, add, publish, status. Serves nothing, talks to nobody."""
