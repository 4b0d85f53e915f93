"""Where bundles come from: signed metadata and files, over HTTP or from a stick. Installs nothing.

base.py holds the nouns that the rest of the agent knows, and loads none of the others; client.py is loaded when a job,
or the daily look, first needs it.
"""
