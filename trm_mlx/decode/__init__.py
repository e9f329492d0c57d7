"""Turns logits into text: pick a token, stream, batch, beam, speculate, constrain."""
