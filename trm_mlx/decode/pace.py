"""Whether drafting pays: a budget of time that it may lose, and what it has gained and lost so far.

What rounds of drafting cost over the same tokens written plainly is a debt, by the running estimate of the time of a
plain token. A round is allowed only if the debt stays within SHARE of the plain time, that of LEAST tokens at first,
even if no draft is kept. So a text of LEAST tokens or more is never slower than plain by more, whatever drafts
are worth. Where rounds lose, the next ones wait, twice as long each time.
"""

from collections import deque
from collections.abc import Sequence
from statistics import mean, median

SHARE = 0.035  # of the plain time, to be lost at most, and some more by estimates that err
LEAST = 100  # tokens
GUESS = 4  # plain tokens in the time of a round, before the first
COLD = 8  # first plain tokens of a text, which take longer than later ones and are no measure
PROBE = 8  # plain tokens that are a measure, before the first round and again after 4, 8, 16, ... rounds
JUDGED = 4  # rounds that decide whether drafting goes on
MARGIN = 1.25  # times its own seconds that a round costs: tokens after it are slower, and measured so (docs/speed.md)
LONGEST = 4096  # tokens to wait at most
USUAL = 5  # times the median: what took longer waited for the machine


class Pace:
    """Counts the seconds of one text, and allows or forbids the next round; with `always` none is forbidden."""

    def __init__(self, *, always: bool = False) -> None:
        self.always = always
        self.costs: deque[float] = deque(maxlen=8)  # seconds of the last rounds
        self.recent: deque[float] = deque(maxlen=32)  # seconds of the last plain tokens
        self.trial: list[tuple[float, int]] = []  # seconds and tokens of the rounds that are being judged
        self.debt, self.tokens, self.rounds = 0.0, 0, 0
        self.pause, self.wait = COLD + PROBE, 8 * PROBE
        self.seconds = 0.0  # of all
        self.whole = [0.0, 0]  # seconds and number of all plain tokens: later ones look back farther, and take longer

    @property
    def token(self) -> float:
        """Seconds of a plain token, about."""
        if not self.recent:
            return 0.0
        most = USUAL * median(self.recent)
        return mean(each for each in self.recent if each <= most)

    @property
    def cost(self) -> float:
        """Seconds of a round, about."""
        return median(self.costs) if self.costs else GUESS * self.token

    def allows(self, owed: float = 0.0) -> bool:
        """Whether the next round may be one of drafts; owed: seconds it takes beyond the usual."""
        if self.always:
            return True
        if self.pause > 0:
            return False
        worst = max(0.0, self.cost + owed - self.token)
        return self.debt + worst <= SHARE * max(LEAST, self.tokens) * self.token

    @property
    def off(self) -> bool:
        """Whether drafting has lost time, and so is tried seldom."""
        return not self.always and self.rounds > 0 and self.debt > 0

    def plain(self, seconds: Sequence[float]) -> None:
        """Count tokens that were written plainly."""
        cold = max(0, COLD - self.tokens) if not self.rounds else 1
        self.recent.extend(seconds[cold:])
        self.tokens += len(seconds)
        self.pause -= len(seconds)
        self.seconds += sum(seconds)
        self.whole = [self.whole[0] + sum(seconds), self.whole[1] + len(seconds)]

    def drafted(self, seconds: float, tokens: int) -> None:
        """Count a round and the tokens that it gave."""
        self.rounds += 1
        self.tokens += tokens
        self.seconds += seconds
        if self.always or not self.recent:
            return
        seconds *= MARGIN
        self.costs.append(seconds)
        self.trial.append((seconds, tokens))
        self.debt += seconds - tokens * self.token
        self.debt = max(self.debt, -JUDGED * self.cost)  # what was gained long ago is not spent now
        if self.rounds >= JUDGED and not self.rounds & (self.rounds - 1):
            self.pause = PROBE
        if len(self.trial) >= JUDGED:
            spent, given = (sum(column) for column in zip(*self.trial, strict=True))
            if spent > given * self.token:
                self.pause, self.wait = self.wait, min(2 * self.wait, LONGEST)
            else:
                self.wait = 8 * PROBE
            self.trial.clear()

    @property
    def speed_up(self) -> float | None:
        """What all tokens would have taken plainly, about, over what they took; None before both are known."""
        spent, count = self.whole
        return spent / count * self.tokens / self.seconds if count and self.rounds else None
