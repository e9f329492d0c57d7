"""The pairs and the count of benchmarks/words.py."""

import json
import random
import re
import sys

import pytest
from tiny_folder import ROOT

from trm_mlx import PRETRAINED
from trm_mlx.tokenizer import Tokenizer

sys.path.insert(0, str(ROOT / "benchmarks"))
import words

pytest_plugins = ["tiny_folder"]

TOPICS = [
    a + b + c for a in ("lan", "ket", "mor", "bri", "tu") for b in ("ta", "to", "ti", "te", "li") for c in "nrlm"
]
STORIES = 100


def story(number: int) -> str:
    """Four paragraphs about four of the topics, each named twice."""
    draw = random.Random(number)
    paragraphs = []
    for topic in draw.sample(TOPICS, 4):
        kin = draw.choice(("sister", "brother", "uncle", "aunt"))
        first = f"Tom number {number} went out with his {kin} and saw a {topic} near the old house on the hill."
        paragraphs.append(f'{first} "What a fine {topic} that is," said Tom, and he stood and looked for an hour.')
    return "\n\n".join(paragraphs)


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    path.write_text("".join(json.dumps({"text": story(number)}) + "\n" for number in range(STORIES)))
    return path


def settings(path, **options) -> words.PairsConfig:
    return words.PairsConfig(**{"data": (str(path),), "least": 60, "length": 220, "held_out": 0.2, **options})


@pytest.fixture(scope="module")
def made(stories):
    return words.pairs(settings(stories))


def test_same_seed_gives_the_same_pairs_in_any_order_of_stories(stories, made, tmp_path):
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("\n".join(reversed(stories.read_text().splitlines())))
    again = words.pairs(settings(backwards))
    for one, other in zip(made, again, strict=True):
        assert sorted(map(str, one)) == sorted(map(str, other))
    assert words.pairs(settings(stories, seed=1)) != made


def test_asked_words_are_topics_that_the_response_holds_twice(made):
    records = [record for side in made for record in side if "prompt" in record]
    assert len(records) > 40
    for record in records:
        assert record["prompt"] == words.ask(record["words"])
        assert len(set(record["words"])) == 3 and set(record["words"]) <= set(TOPICS)
        assert all(len(re.findall(rf"\b{word}\b", record["response"])) >= 2 for word in record["words"])


def test_pairs_fit_the_length_as_they_are_trained_on(made):
    tokenizer = Tokenizer.load(PRETRAINED / "tokenizer.model")
    for record in (record for side in made for record in side if "prompt" in record):
        roles = (("user", "prompt"), ("assistant", "response"))
        messages = [{"role": role, "content": record[key]} for role, key in roles]
        assert len(tokenizer.chat(messages, reply=False)) + 2 <= 220
        assert len(tokenizer.encode(record["response"])) >= 60


def test_held_out_pairs_are_of_other_stories_and_plain_ones_are_whole(made):
    train, held_out = made
    numbers = [{re.search(r"number (\d+)", str(record)).group(1) for record in side} for side in made]
    assert len(numbers[0] & numbers[1]) == 0 < len(numbers[1])
    assert all("prompt" in record for record in held_out)
    plain = [record["text"] for record in train if "text" in record]
    assert plain and set(plain) <= {story(number) for number in range(STORIES)}


def test_passages_are_whole_paragraphs_within_their_limits():
    tokenizer = Tokenizer.load(PRETRAINED / "tokenizer.model")
    long = "He walked on and on. " * 60
    text = "\n\n".join(["One short day.", long.strip(), "The cat sat down.", "It slept there,", "and woke."])
    assert list(words.passages(text, tokenizer, 1, 60)) == [
        "One short day.",
        "The cat sat down.\n\nIt slept there,\n\nand woke.",
    ]
    assert list(words.passages(text, tokenizer, 30, 60)) == []


def test_responses_of_long_sentences_can_be_left_out(stories, made):
    assert words.words_to_a_sentence('"Oh!" said she. "You came." He had.\n\nNobody spoke.') == 9 / 5
    assert words.pairs(settings(stories, sentence=17.5)) == made  # its sentences have 17.5 words each
    with pytest.raises(ValueError, match=r"pairs on both sides, got \d+ and 0"):
        words.pairs(settings(stories, sentence=17.4))


NAMES = "Ann Sue Eve\n\nTom Max Sam Jim\n"


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text(NAMES)
    return path


def test_names_change_throughout_a_text_and_stay_of_their_kind():
    kinds = [["Ann", "Sue", "Eve"], ["Tom", "Max", "Sam", "Jim"]]
    text = "Tom saw Sam. Sam, not Samson, saw Tom's hat; Ann saw nobody."
    for seed in range(20):
        told = words.renamed(text, kinds, random.Random(seed))
        one, two, three = re.fullmatch(
            r"(\w+) saw (\w+)\. \2, not Samson, saw \1's hat; (\w+) saw nobody\.", told
        ).groups()
        assert {one, two} == {"Max", "Jim"} and three in ("Sue", "Eve")
    assert words.renamed("Ann, Sue and Eve.", kinds, random.Random(0)) == "Ann, Sue and Eve."  # none is free


def test_a_story_is_told_again_with_other_names(stories, made, names):
    train, held_out = words.pairs(settings(stories, names=names, tellings=3))
    assert held_out == made[1]
    told = [record.get("response", record.get("text")) for record in train]
    assert {record.get("response", record.get("text")) for record in made[0]} <= set(told)
    assert 2.5 * len(made[0]) < len(train) < 3.1 * len(made[0])
    others = [text for text in told if not text.startswith("Tom")]
    assert len(others) > 100 and all(re.match("(Max|Sam|Jim) number", text) and "Tom" not in text for text in others)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Ann\n", "a line has fewer"),
        ("", "a line has fewer"),
        ("Ann Sue\nTom Ann\n", "got 'Ann'"),
        ("Ann 4\n", "got '4'"),
    ],
)
def test_a_file_of_names_that_cannot_stand_for_each_other_is_refused(names, text, message):
    names.write_text(text)
    with pytest.raises(ValueError, match=message):
        words.read_names(names)


def test_tellings_need_names(stories, tmp_path):
    with pytest.raises(ValueError, match="tellings of 2 need names, a file of them; got none"):
        settings(stories, tellings=2)
    with pytest.raises(FileNotFoundError, match="names must be a file, got"):
        words.pairs(settings(stories, names=tmp_path / "none.txt", tellings=2))


def test_words_that_come_in_heaps_are_chosen_over_those_spread_evenly():
    passages = [f"then although the {topic} and the {topic} were here" for topic in TOPICS * 30]
    passages += ["nothing of note was said there at length"] * 2000
    known = words.content_words(passages)
    assert known == set(TOPICS)
    assert words.choose("the fox saw the fox by the river", {"fox", "river"}, 1, random.Random(0)) == ["fox"]


@pytest.mark.parametrize(
    ("asked", "word", "found"),
    [
        ("fox", "foxes", True),
        ("carry", "carried", True),
        ("dance", "dancing", True),
        ("cat", "catalogue", False),
        ("fox", "ox", False),
        ("king", "kin", False),
    ],
)
def test_simple_inflections_count_as_the_word(asked, word, found):
    assert words.same(asked, word) == found


def test_a_text_scores_by_its_own_words_and_chance_by_the_words_of_others():
    asked = [["fox", "river", "lantern"], ["castle", "kitten", "wagon"], ["turnip", "fox", "pirate"]]
    obedient = ["Foxes swam the river by a lantern.", "A kitten in a castle, a wagon!", "A pirate fox, a turnip."]
    share = words.share(obedient, asked)
    assert share.asked == share.all_asked == (1.0, 0.0)
    assert share.chance == (0.0, 0.0)
    deaf = words.share(["The king had a fox."] * 3, asked)
    assert deaf.asked[0] == pytest.approx((1 / 3 + 0 + 1 / 3) / 3)
    assert deaf.chance[0] == pytest.approx(2 / 6 / 3)
    assert deaf.difference[0] == pytest.approx(deaf.asked[0] - deaf.chance[0])
    assert deaf.all_asked[0] == 0


def test_score_writes_replies_with_a_tuned_model_and_a_base(folder, made, tmp_path, capsys):
    path = tmp_path / "held_out.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in made[1]))
    line = f"score --prompts-file {path} --model {folder} --base {folder} --prompts 3 --max-tokens 8 --json"
    words.main(line.split())
    out, err = capsys.readouterr()
    shares = json.loads(out)["shares"]
    assert set(shares) == {"model", "base"}
    assert set(shares["base"]) == {"asked", "chance", "difference", "all_asked"}
    assert err.count(made[1][0]["prompt"]) == 2


def test_bare_command_says_what_it_takes(capsys):
    with pytest.raises(SystemExit, match="2"):
        words.main([])
    assert "words.py pairs --data" in capsys.readouterr().err
