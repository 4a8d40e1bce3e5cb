"""Checkpoints and tables as others can use them: folders with a card, and the way to a model hub and back."""
