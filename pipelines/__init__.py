"""Puts assets, resources, checks, automation and jobs together, and starts them from the command line."""
