"""Turns logits into text: how a token is picked, and how a text streams."""
