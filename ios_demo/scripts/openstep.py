"""Property lists in the old style of NeXT, as Xcode writes its project files."""

import re

Value = str | list["Value"] | dict[str, "Value"]

TOKEN = re.compile(r'\s+|//[^\n]*|/\*.*?\*/|("(?:[^"\\]|\\.)*")|([\w$./:-]+)|([{}()=;,])', re.DOTALL)


def parse(text: str) -> Value:
    """The text as tables, lists and words; comments are left out.

    Raises:
        ValueError: it is none, or a key stands twice in a table.
    """
    tokens: list[tuple[str, int]] = []
    place = 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"line {text.count(chr(10), 0, place) + 1}: {text[place : place + 20]!r} is no token")
        if match.lastindex:
            tokens.append((match.group(), text.count("\n", 0, place) + 1))
        place = match.end()
    tokens.reverse()

    def take(wanted: str = "") -> str:
        token, line = tokens.pop() if tokens else ("", text.count("\n") + 1)
        if not token or (wanted and token != wanted) or (not wanted and token in "{}()=;,"):
            raise ValueError(f"line {line}: {wanted or 'a value'} must stand there, got {token or 'the end'}")
        return token

    def word() -> str:
        token = take()
        return re.sub(r"\\(.)", r"\1", token[1:-1]) if token.startswith('"') else token

    def value() -> Value:
        if tokens and tokens[-1][0] == "{":
            take("{")
            table: dict[str, Value] = {}
            while tokens and tokens[-1][0] != "}":
                line = tokens[-1][1]
                key = word()
                if key in table:
                    raise ValueError(f"line {line}: {key} must stand once, and stands there again")
                take("=")
                table[key] = value()
                take(";")
            take("}")
            return table
        if tokens and tokens[-1][0] == "(":
            take("(")
            items: list[Value] = []
            while tokens and tokens[-1][0] != ")":
                items.append(value())
                if tokens and tokens[-1][0] != ")":
                    take(",")
            take(")")
            return items
        return word()

    result = value()
    if tokens:
        raise ValueError(f"line {tokens[-1][1]}: nothing may follow, got {tokens[-1][0]}")
    return result
