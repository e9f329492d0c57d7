"""Whether drafting pays: a budget of time that it may lose, and what it has gained and lost so far.

What rounds of drafting cost over the same tokens written plainly is a debt, by the running estimate of the time of a
plain token. A round is allowed only if the debt stays within SHARE of the plain time, that of LEAST tokens at first,
even if no draft is kept. So a text of LEAST tokens or more is never slower than plain by more, whatever drafts
are worth. Where rounds lose, the next ones wait, twice as long each time.
"""

from collections import deque
from statistics import median

SHARE = 0.035  # of the plain time, to be lost at most, and some more by estimates that err
LEAST = 100  # tokens
GUESS = 4  # plain tokens in the time of a round, before the first
PROBE = 8  # plain tokens before the first round, and between JUDGED of them, to know their time
JUDGED = 4  # rounds that decide whether drafting goes on
RENEWED = 64  # rounds after which the time of a plain token is measured again
LONGEST = 4096  # tokens to wait at most


class Pace:
    """Counts the seconds of one text, and allows or forbids the next round; with `always` none is forbidden."""

    def __init__(self, *, always: bool = False) -> None:
        self.always = always
        self.costs: deque[float] = deque(maxlen=8)  # seconds of the last rounds
        self.recent: deque[float] = deque(maxlen=8)  # seconds of a token in each of the last plain stretches
        self.trial: list[tuple[float, int]] = []  # seconds and tokens of the rounds that are being judged
        self.debt, self.tokens, self.rounds = 0.0, 0, 0
        self.pause, self.wait = PROBE, 8 * PROBE
        self.plain_seconds = self.round_seconds = 0.0
        self.plain_tokens = self.round_tokens = 0

    @property
    def token(self) -> float:
        """Seconds of a plain token, about."""
        return median(self.recent) if self.recent else 0.0

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

    def plain(self, seconds: float, tokens: int) -> None:
        """Count tokens that were written plainly, all at about the same depth of the text."""
        self.recent.append(seconds / tokens)
        self.tokens += tokens
        self.pause -= tokens
        self.plain_seconds += seconds
        self.plain_tokens += tokens

    def drafted(self, seconds: float, tokens: int) -> None:
        """Count a round and the tokens that it gave."""
        self.rounds += 1
        self.tokens += tokens
        self.round_seconds += seconds
        self.round_tokens += tokens
        if self.always or not self.recent:
            return
        self.costs.append(seconds)
        self.trial.append((seconds, tokens))
        self.debt += seconds - tokens * self.token
        self.debt = max(self.debt, -JUDGED * self.cost)  # what was gained long ago is not spent now
        if self.rounds % RENEWED == 0:
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
        """The plain time of all tokens over the time they took; None before both are known."""
        if not self.plain_tokens or not self.round_tokens:
            return None
        each = self.plain_seconds / self.plain_tokens
        return each * (self.plain_tokens + self.round_tokens) / (self.plain_seconds + self.round_seconds)
