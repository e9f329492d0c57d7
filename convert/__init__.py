"""Core ML export. Nothing is exported yet: the first release trains, generates and evaluates."""
