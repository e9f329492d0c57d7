"""Numbers drawn from a counter, the same ones on every machine and in every language."""

WORD = (1 << 64) - 1


def splitmix64(seed: int, step: int) -> int:
    """A number from 0 to 2**64 - 1: output `step`, from 0, of the generator of this seed; nothing is kept in between.

    Source: SplitMix64, Steele, Lea and Flood, OOPSLA 2014.
    """
    z = (int(seed) + (int(step) + 1) * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)
