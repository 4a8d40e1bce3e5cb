"""The VideoSearch-R1 library: plain Python, torch and transformers. It never imports Dagster."""
