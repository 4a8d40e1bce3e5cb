"""The Dagster code location (assets, resources, checks, automation, jobs) and the command line that starts it."""
