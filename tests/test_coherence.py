"""The counts of benchmarks/coherence.py."""

import json
import sys

import pytest
from tiny_folder import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import coherence

pytest_plugins = ["tiny_folder"]

FIRST = 'One day Tom met an old owl by the gate. "Come in," said the old owl.'
SECOND = 'Then Tom laughed. "I know you, and Ann too," said the owl, and so did Ann.'


def test_characters_are_names_within_sentences_and_who_speaks():
    assert coherence.characters(FIRST) == ["Tom", "owl"]
    assert coherence.characters(SECOND) == ["Tom", "Ann", "Ann", "owl"]
    assert coherence.characters("There sat a cat. It rained.") == []
    assert coherence.characters('"No," cried her little grey-eyed brother. She said the word was new.') == ["brother"]


def test_a_character_is_known_where_the_first_half_names_it():
    assert coherence.known(FIRST, SECOND) == 2 / 4
    assert coherence.known("Nobody was there.", SECOND) == 0


def test_halves_make_the_text_and_part_it_by_words():
    first, second = coherence.halves("one two  three\n\nfour five")
    assert first + second == "one two  three\n\nfour five"
    assert second == "three\n\nfour five"
    assert coherence.halves("") == ("", "")


def test_runs_of_four_words_that_come_again_are_repeated():
    assert coherence.repeated("a b c d e f") == 0
    assert coherence.repeated("He ran to the hill. He ran to the well!") == pytest.approx(1 / 7)
    assert coherence.repeated("and on " * 50) == pytest.approx(1 - 2 / 97)
    assert coherence.repeated("too few words") == 0


def test_chance_takes_the_first_half_of_another_text():
    texts = [
        "Here is Tom now. There went Tom, off.",
        "Here is Ann now. There went Ann, off.",
    ]
    found = coherence.coherence(texts)
    assert found.known == (1, 0) and found.chance == (0, 0) and found.mentioning == 2
    with pytest.raises(ValueError, match="2 texts or more must mention a character in their second half, got 1"):
        coherence.coherence([texts[0], "It rained all day."])


def test_an_opening_ends_with_a_sentence():
    text = 'He ran. "Stop it, you there!" said she. Then he stopped.'
    assert coherence.opening(text, 1) == "He ran."
    assert coherence.opening(text, 3) == 'He ran. "Stop it, you there!"'
    assert coherence.opening(text, 50) == text


def test_a_model_goes_on_from_openings_and_is_set_beside_the_stories(folder, tmp_path, capsys):
    path = tmp_path / "stories.jsonl"
    lines = [f"The fox met {name} on the road. So on they went, the fox and {name}, home." for name in ("Ann", "Tom")]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    given = ["--data", str(path), "--model", str(folder), "--opening", "3", "--max-tokens", "8"]
    with pytest.raises(SystemExit, match="2"):  # a model of random weights names nobody
        coherence.main(given)
    out, err = capsys.readouterr()
    assert out == "" and all(line.split(".")[0] in err for line in lines)
    assert "2 texts or more must mention" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stories", "1"], "stories must be at least 2, as each is another's control, got 1"),
        (["--opening", "0"], "opening must be at least 1, got 0"),
        (["--opening", "99"], "the data must hold 2 stories longer than 99 words, got 0"),
    ],
)
def test_what_cannot_be_measured_ends_with_2(folder, tmp_path, capsys, flags, message):
    path = tmp_path / "stories.txt"
    path.write_text(FIRST)
    with pytest.raises(SystemExit) as left:
        coherence.main(["--data", str(path), "--model", str(folder), *flags])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
