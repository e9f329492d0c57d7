"""Ways to change a trained model: so far the grids that its matrices are rounded to."""
