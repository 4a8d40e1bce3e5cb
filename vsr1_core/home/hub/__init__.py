"""Share checkpoints and tables: write them as folders with a card, push them to a model hub, and pull checkpoints."""
