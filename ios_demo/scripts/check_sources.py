"""Holds the Swift sources to rules that no compiler knows: `python ios_demo/scripts/check_sources.py [FOLDER]`.

One line for each finding, and exit status 1 if there is one. Comments and the text of string literals are not looked
at, but what is interpolated into them is.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

LONGEST = 350  # lines, as in tests/test_house.py
TOKENIZER = re.compile(r"Sources/TRMCore/(Token|PairMerges|ProtobufReader|StreamingDetokenizer|UTF8Scan)")
SPACE = re.compile(r"[^\n]")
MARK = re.compile(r'//|/\*|#*"""|#*"|[()]')  # where Swift code may stop being code


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What must not stand in some files."""

    pattern: str
    reason: str
    applies: Callable[[str], bool] = lambda path: True


def outside(*places: str) -> Callable[[str], bool]:
    return lambda path: not path.startswith(places)


NETWORK = (
    r"\b(URLSession\w*|URLRequest|NSURLConnection|NW(Connection|Listener|Browser|PathMonitor|Endpoint)|NetService\w*|"
    r"CFSocket\w*|CFStream\w*|CFHost\w*|WKWebView|AsyncImage|MCSession|getaddrinfo|gethostbyname|sockaddr\w*)\b"
)
RULES = [
    Rule(pattern=NETWORK, reason="the app has no network code"),
    Rule(
        pattern=r"\bimport\s+(Network|FoundationNetworking|CFNetwork|WebKit|SafariServices|MultipeerConnectivity|"
        r"CloudKit|GameKit|NIO\w*)\b",
        reason="the app has no network code",
    ),
    Rule(pattern=r"(?<![\w.])(socket|connect|sendto|recvfrom)\s*\(", reason="the app has no network code"),
    Rule(pattern=r"\btry!", reason="use try, and let the error be told"),
    Rule(pattern=r"\bas!", reason="use as?, and say what to do with nil"),
    Rule(
        pattern=r"\b(fatalError|preconditionFailure|assertionFailure|precondition|abort)\s*\(",
        reason="throw an error instead of ending the app",
    ),
    Rule(
        pattern=r"(?<=[\w)\]}>?])(?<!\btry)(?<!\bas)!(?!=)",
        reason="no forced unwrapping: use guard, if let or ??",
    ),
    Rule(pattern=r"@unchecked\b|\bnonisolated\(unsafe\)", reason="let the compiler check what is shared"),
    Rule(
        pattern=r"(?<![\w.])(print|debugPrint|dump|NSLog)\s*\(",
        reason="a library or an app does not print",
        applies=outside("Sources/trm-bench/"),
    ),
    Rule(
        pattern=r"\[String\s*:|\bDictionary<String\b|\bSet<String>",
        reason="text is compared as bytes here: to a String composed and decomposed accents are equal",
        applies=lambda path: TOKENIZER.match(path) is not None,
    ),
    Rule(
        pattern=r"\bimport\s+(SwiftUI|UIKit|AppKit|WatchKit)\b",
        reason="views are in App/ alone",
        applies=outside("App/"),
    ),
    Rule(
        pattern=r"\bimport\s+CoreML\b",
        reason="Core ML is called in Sources/TRMCoreML alone",
        applies=outside("Sources/TRMCoreML/"),
    ),
    Rule(
        pattern=r"\bUserDefaults\b|@AppStorage\b|@SceneStorage\b|\bsystemUptime\b|\bmach_absolute_time\b",
        reason="PrivacyInfo.xcprivacy gives no reason for this one",
    ),
]
ADDRESS = re.compile(r'"[^"\n]*\b(https?|wss?|ftp)://', re.IGNORECASE)


class Blanked:
    """Swift code with comments, and the text of string literals, replaced by spaces; places stay."""

    def __init__(self, code: str) -> None:
        self.code, self.place, self.parts = code, 0, []
        self._read(until=None)
        self.text = "".join(self.parts)

    def _keep(self, count: int) -> None:
        self.parts.append(self.code[self.place : self.place + count])
        self.place += count

    def _blank(self, count: int) -> None:
        self.parts.append(SPACE.sub(" ", self.code[self.place : self.place + count]))
        self.place += count

    def _read(self, until: str | None) -> None:
        """Code, up to the parenthesis that closes an interpolation."""
        depth = 0
        while mark := MARK.search(self.code, self.place):
            self._keep(mark.start() - self.place)
            found = mark.group()
            if found == "//":
                end = self.code.find("\n", self.place)
                self._blank((len(self.code) if end < 0 else end) - self.place)
            elif found == "/*":
                self._blank_comment()
            elif found.endswith('"'):
                self._read_string(found.strip('"'), found.lstrip("#"))
            elif found == until and depth == 0:
                return
            else:
                depth += {"(": 1, ")": -1}[found]
                self._keep(1)
        self._keep(len(self.code) - self.place)

    def _blank_comment(self) -> None:
        depth, end = 0, self.place
        for mark in re.compile(r"/\*|\*/").finditer(self.code, self.place):
            depth += 1 if mark.group() == "/*" else -1
            end = mark.end()
            if depth == 0:
                break
        self._blank(end - self.place)

    def _read_string(self, hashes: str, quotes: str) -> None:
        self._keep(len(hashes + quotes))
        escape = "\\" + hashes
        while self.place < len(self.code) and not self.code.startswith(quotes + hashes, self.place):
            if self.code.startswith(escape + "(", self.place):
                self._blank(len(escape) + 1)
                self._read(until=")")
                self._blank(1)
            elif self.code.startswith(escape, self.place):
                self._blank(len(escape) + 1)
            elif quotes == '"' and self.code[self.place] == "\n":
                return  # no literal of one line goes on; the compiler says what is wrong
            else:
                self._blank(1)
        self._keep(len(quotes + hashes))


def findings(root: Path) -> Iterator[str]:
    """What breaks a rule in the folder of the package, as `path:line: what, and why not`."""
    files = sorted(file for part in ("Sources", "App", "Tests") for file in (root / part).rglob("*.swift"))
    if not any(file.is_relative_to(root / "Sources") for file in files):
        yield f"{root}: there are no Swift sources; name the folder of Package.swift"
    for file in files:
        path = str(PurePosixPath(file.relative_to(root)))
        code = file.read_text(encoding="utf-8")
        count = len(code.splitlines())
        if count > LONGEST:
            yield f"{path}:{count}: a file must have at most {LONGEST} lines; look for its second idea"
        if not path.startswith("Tests/"):
            yield from _broken(path, code)
    manifest = root / "Package.swift"
    if manifest.exists():
        for number, line in enumerate(Blanked(manifest.read_text(encoding="utf-8")).text.splitlines(), 1):
            if re.search(r"\.package\s*\(", line):
                yield f"Package.swift:{number}: .package(: the app depends on nothing but the system"
    for file in sorted((root / "App").rglob("*.plist")) + sorted((root / "App").rglob("*.entitlements")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"NSAppTransportSecurity|com\.apple\.security\.network|NSLocalNetworkUsage", line):
                path = PurePosixPath(file.relative_to(root))
                yield f"{path}:{number}: {line.strip()}: the app has no network code"


def _broken(path: str, code: str) -> Iterator[str]:
    blanked = Blanked(code).text
    for rule in RULES:
        if not rule.applies(path):
            continue
        for found in re.finditer(rule.pattern, blanked):
            number = blanked.count("\n", 0, found.start()) + 1
            line = code.splitlines()[number - 1].strip()
            yield f"{path}:{number}: {line}: {rule.reason}"
    for number, line in enumerate(code.splitlines(), 1):
        if ADDRESS.search(line) and not line.lstrip().startswith("//"):
            yield f"{path}:{number}: {line.strip()}: the app knows no address"


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = list(findings(root))
    for line in found:
        print(line)
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
