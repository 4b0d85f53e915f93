"""The web page, one screen a file, on NiceGUI. Screens read views and call commands; no rule lives here."""
