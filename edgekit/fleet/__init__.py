"""The server: ingest, store, JSON API, repository, web page. Signs snapshots, timestamps and commands, no targets."""
