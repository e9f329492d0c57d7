"""Core ML export: the model's program, its package, and the proof that both are one model. See docs/export.md."""

import logging

# coremltools warns at import, wherever it cannot predict, of each of its parts that cannot.
logging.getLogger("coremltools").setLevel(logging.ERROR)

NEEDED = 'coremltools must be installed for Core ML packages; run: pip install -e ".[convert]"'
