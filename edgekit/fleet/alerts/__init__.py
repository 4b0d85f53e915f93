"""Alerts: rules over the fleet's figures, evaluated in the background, told once to those who want to know."""
