import importlib
import json
from pathlib import Path

import pytest

from trm_mlx.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def maker():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GOLDEN))
        yield importlib.import_module("make_tokenizer")


@pytest.mark.slow
def test_golden_files_are_what_their_program_writes(maker):
    changed = "a tokenizer or its vectors changed; run tests/golden/make_tokenizer.py"
    assert maker.TIES.read_bytes() == maker.tied(maker.SMALL.read_bytes()), changed
    assert maker.ENCODE.read_bytes() == maker.encode_document().encode(), changed
    assert maker.DECODE.read_bytes() == maker.decode_document().encode(), changed


def test_golden_files_hold_thousands_of_cases_and_stay_small(maker):
    encode, decode = (json.loads(path.read_text()) for path in (maker.ENCODE, maker.DECODE))
    assert (len(encode["texts"]) > 1500, len(encode["bytes"]) > 600, len(decode["cases"])) == (True, True, 2400)
    assert all(path.stat().st_size < 700_000 for path in (maker.ENCODE, maker.DECODE))
    assert {case.get("refused") for case in encode["chats"]} == {
        None,
        "roleOutOfTurn",
        "noUserMessage",
        "replyWithoutQuestion",
    }


def test_golden_tokenizers_tell_apart_how_an_accent_is_written(maker):
    tokenizer = Tokenizer.load(maker.SMALL)
    assert {"\u00e9", "e\u0301"} <= set(tokenizer.pieces)


def test_golden_tokenizer_of_ties_has_ties_and_pieces_of_characters_that_are_none(maker):
    tokenizer = Tokenizer.load(maker.TIES)
    pieces = [piece for piece in tokenizer.pieces if isinstance(piece, str)]
    learnt = pieces[7:]
    assert set("".join(learnt)) - set(learnt)
    assert len(learnt) > 1000 > 7  # more pieces than scores


def test_the_shipped_tokenizer_has_vectors(maker):
    shipped = list(GOLDEN.parent.parent.glob("trm_mlx/pretrained/*/tokenizer.model"))
    files = {(GOLDEN / row["file"]).resolve() for row in json.loads(maker.ENCODE.read_text())["tokenizers"]}
    assert shipped and {path.resolve() for path in shipped} < files
