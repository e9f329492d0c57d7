"""Texts that must have a form: what is written has it, whatever the model would rather say."""

import dataclasses
import json
import random
import re

import numpy as np
import pytest
from test_automaton import random_pattern
from test_stream import GREEDY, WILD, Script

from trm_mlx import PRETRAINED, checkpoint
from trm_mlx.decode.constrain import ConstrainConfig, Constraint
from trm_mlx.decode.sampling import SamplingConfig, sample
from trm_mlx.decode.search import SearchConfig, find
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.decode.words import WordsConfig
from trm_mlx.generate import generate, main
from trm_mlx.tokenizer import Tokenizer

pytest_plugins = ["tiny_folder"]

STRANGE = "na\u00efve \U0001f600 \u4e2d \u2581"  # the last is how SentencePiece writes a space
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
}


def drawn(constraint: Constraint, tokenizer: Tokenizer, room: int, seed: int) -> tuple[str, int]:
    """A text whose every token is drawn from all that are allowed, and how many it took."""
    draw, state, tokens = random.Random(seed), constraint.start, []
    while len(tokens) < room and not constraint.over(state):
        token = draw.choice(np.flatnonzero(constraint.allowed(state, room - len(tokens))).tolist())
        tokens.append(token)
        if token in (tokenizer.eos, tokenizer.end):
            break
        assert token > tokenizer.end, "a control token"
        state = constraint.grown(state, token)
    return tokenizer.decode(tokens), len(tokens)


# What may be written.


@pytest.mark.parametrize("seed", range(10))
def test_distances_are_those_of_a_search_from_each_state(loaded, seed):
    tokenizer = loaded[1]
    form = Constraint(
        ConstrainConfig(regex=random_pattern(random.Random(100 + seed)) + "(?: the river|12)"), tokenizer
    )
    found, dead = form.automaton, form.automaton.dead
    spelled = [piece if isinstance(piece, bytes) else piece.encode() for piece in tokenizer.pieces][7:]

    def after(state: int, piece: bytes) -> int:
        for byte in piece:
            state = int(found.table[state, byte])
        return state

    for steps, nearest in (([bytes([byte]) for byte in range(256)], found.nearest), (spelled, form.nearest)):
        for state in range(min(dead, 12)):
            level, reached = 0, {state}
            while not any(found.final[each] for each in reached):
                level, reached = level + 1, {after(each, piece) for each in reached for piece in steps} - {dead}
            assert nearest[state] == level


@pytest.mark.parametrize("seed", range(60))
def test_whatever_is_drawn_matches_and_fits(loaded, seed):
    tokenizer, draw = loaded[1], random.Random(seed)
    pattern = random_pattern(draw, 4)
    form = Constraint(ConstrainConfig(regex=pattern), tokenizer)
    least = int(form.nearest[0])
    for room in {least or 1, least + 1, least + draw.randrange(1, 40)}:
        text, count = drawn(form, tokenizer, room, seed)
        assert re.fullmatch(pattern, text) and count <= room


def test_every_choice_can_come_and_nothing_else(loaded):
    choices = ("moon", "moonlight", "the moon", STRANGE, "", "{a}|[b]-&&~~ \\d .*+?^$#")
    form = Constraint(ConstrainConfig(choices=choices), loaded[1])
    assert {drawn(form, loaded[1], 80, seed)[0] for seed in range(300)} == {*choices}


@pytest.mark.parametrize("room", [len(STRANGE.encode()), 500])
def test_characters_without_a_piece_come_whole(loaded, room):
    reply = generate(loaded[0], "hello", choices=(STRANGE,), max_tokens=room, temperature=3, top_k=0)
    assert (reply.text, reply.reason) == (STRANGE, "end")


def test_the_fewest_tokens_are_enough(loaded):
    form = Constraint(ConstrainConfig(choices=("the moon and the river",)), loaded[1])
    least = int(form.nearest[0])
    assert least < len("the moon and the river")
    assert drawn(form, loaded[1], least, 0) == ("the moon and the river", least)
    form.check(least)
    with pytest.raises(ValueError, match=f"takes {least} tokens, and {least - 1} may be written; raise max_tokens"):
        form.check(least - 1)


@pytest.mark.slow
def test_a_text_is_finished_in_time_however_little_room_is_left(loaded):
    for room in (*range(1, 30), 200):
        reply = generate(
            loaded[0], "hello", regex=r"(\w+ )*end\.|", max_tokens=room, temperature=4, top_k=0, seed=room
        )
        assert re.fullmatch(r"(\w+ )*end\.|", reply.text) and len(reply.tokens) <= room


def test_a_text_is_finished_before_the_context_ends(loaded):
    model, tokenizer = loaded
    prompt = [tokenizer.bos] * (model.config.context - 9)
    form = Constraint(ConstrainConfig(regex="[a-z ]*!!!"), tokenizer)
    found = list(events(model, tokenizer, prompt, StreamConfig(), WILD, constraint=form))
    assert re.fullmatch("[a-z ]*!!!", "".join(event.text for event in found)) and len(found) <= 9
    with pytest.raises(ValueError, match=r"takes 3 tokens, and 2 may be written.*shorten the prompt"):
        list(events(model, tokenizer, [*prompt, *[tokenizer.bos] * 7], StreamConfig(), WILD, constraint=form))


def test_an_end_may_only_come_where_the_text_is_whole(loaded):
    tokenizer = loaded[1]
    form = Constraint(ConstrainConfig(regex="ab?"), tokenizer)
    state, allowed = form.start, []
    for letter in "ab":
        allowed.append(form.allowed(state, 9)[[tokenizer.eos, tokenizer.end]].tolist())
        state = form.grown(state, tokenizer.pieces.index(letter.encode()))
    assert (allowed, form.over(state)) == ([[False, False], [True, True]], True)


def test_a_text_ends_where_nothing_can_follow_or_the_model_ends_it(loaded):
    tokenizer = loaded[1]
    (o,) = [tokenizer.pieces.index("o")]
    form = Constraint(ConstrainConfig(regex="o{1,3}"), tokenizer)
    for said, tokens in (([o] * 9, [o] * 3), ([o, tokenizer.end], [o, tokenizer.end]), ([o, 300, 300], [o])):
        model = Script(list(said), tokenizer.vocabulary)
        found = list(events(model, tokenizer, [tokenizer.bos], StreamConfig(max_tokens=9), GREEDY, constraint=form))
        assert [event.token for event in found][: len(tokens)] == tokens
        assert found[-1].reason == "end"


# With the rest of generate.


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 4, "top_k": 0}, {"top_p": 0.5}, {"best_of": 3}, {"beams": 3}]
)
def test_every_way_of_choosing_keeps_the_form(loaded, options):
    more = {} if "beams" in options else {"frequency_penalty": 2.0, "repetition_penalty": 1.5}
    for room in (12, 40):
        reply = generate(loaded[0], "hello", json_schema=json.dumps(PERSON), max_tokens=room + 20, **options, **more)
        person = json.loads(reply.text)
        assert [*person] == ["name", "age"] and 0 <= person["age"] <= 120


def test_one_beam_is_greedy(loaded):
    form = {"regex": r"[a-z]{3}( [a-z]+)*\.", "max_tokens": 15}
    assert generate(loaded[0], "a", beams=1, **form).tokens == generate(loaded[0], "a", temperature=0, **form).tokens


def test_the_same_seed_gives_the_same_text_and_another_another(loaded):
    texts = [generate(loaded[0], "a", regex=r"[a-z ]{20}", temperature=4, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_form_that_every_text_has_changes_nothing(loaded):
    tokenizer, config = loaded[1], StreamConfig(max_tokens=12)
    said = [*tokenizer.encode("hello moon, \U0001f600"), *[tokenizer.encode(" a")[0]] * 12]
    form = Constraint(ConstrainConfig(regex="(?s).*"), tokenizer)
    free, held = (
        list(events(Script(said, tokenizer.vocabulary), tokenizer, [tokenizer.bos], config, GREEDY, constraint=each))
        for each in (None, form)
    )
    assert held == free and "\U0001f600" in "".join(event.text for event in held)


def test_chat_keeps_the_form(loaded):
    assert generate(loaded[0], "moon or river?", chat=True, choices=("moon", "river")).text in ("moon", "river")


def test_a_ban_is_kept_without_ever_running_into_it(loaded):
    model = loaded[0]
    for seed in range(15):
        wild = {"temperature": 4, "top_k": 0, "seed": seed, "max_tokens": 12}
        text = generate(model, "the m", regex="[mon]{3,6}!", ban=("moo", "on", "nn"), **wild).text
        assert re.fullmatch("[mon]{3,6}!", text) and not any(ban in "the m" + text for ban in ("moo", "on", "nn"))
    assert generate(model, "the m", choices=("oon", "end"), ban=("moon",)).text == "end"
    assert generate(model, "moon", choices=("oon",), ban=("moon",)).text == "oon"  # what was only read


@pytest.mark.parametrize(
    "options", [{"choices": ("moon", "moonlight")}, {"regex": ".*moo.*"}, {"json_schema": '{"const": "moo"}'}]
)
def test_a_ban_that_leaves_nothing_is_refused(loaded, options):
    with pytest.raises(
        ValueError, match="ban must leave some text of choices, regex or json_schema, and leaves none"
    ):
        generate(loaded[0], "hello", ban=("moo",), **options)


def test_biases_and_searches_heed_the_form(loaded):
    model, tokenizer = loaded
    form, prompt = Constraint(ConstrainConfig(choices=("moon", "river")), tokenizer), [tokenizer.bos]
    for search in (SearchConfig(beams=2), SearchConfig(best_of=2)):
        reply = find(
            model,
            tokenizer,
            prompt,
            StreamConfig(),
            SamplingConfig(),
            WordsConfig(bias=("#300=99",)),
            search,
            constraint=form,
        )
        assert reply.text in ("moon", "river")


def test_what_is_not_allowed_is_not_sampled():
    logits, allowed = np.arange(8.0), np.arange(8) < 3
    assert sample(logits, GREEDY, 0, allowed=allowed) == 2
    assert {sample(logits, WILD, step, allowed=allowed) for step in range(50)} == {0, 1, 2}
    with pytest.raises(ValueError, match="must allow at least one token"):
        sample(np.where(allowed, -np.inf, logits), GREEDY, 0, allowed=allowed)


@pytest.mark.slow
def test_the_model_that_ships_writes_what_it_is_asked_for():
    model = checkpoint.load_model(PRETRAINED)
    sentence = r"[A-Z][a-z]+( [a-z]+){2,9}\."
    for seed in range(3):
        assert re.fullmatch(sentence, generate(model, "Once. ", regex=sentence, seed=seed, max_tokens=40).text)
        text = generate(model, "A boy: ", json_schema=json.dumps(PERSON), seed=seed, max_tokens=40).text
        assert [*json.loads(text)] == ["name", "age"]
    assert generate(model, "x", choices=(STRANGE, STRANGE[::-1])).text in (STRANGE, STRANGE[::-1])


# What cannot be.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": ()}, "choices must name at least one text"),
        ({"choices": "ab"}, "choices must be a tuple of texts, got the text 'ab'"),
        ({"choices": ("\ud800",)}, "choices text must be valid Unicode"),
        ({"choices": ("a",), "regex": "a"}, "give choices or regex, not both"),
        ({"regex": b"a"}, "regex must be a text, got bytes"),
        ({"json_schema": {}}, "json_schema must be a text, got dict"),
        ({"regex": "a", "stop": ("a",)}, "stop cuts texts, and those of choices, regex or json_schema must be whole"),
        ({"regex": "a("}, r"regex 'a(' is malformed: missing ), unterminated subpattern at position 1"),
        ({"regex": "[a-z&&[^b]]"}, "must have [ and doubled -&~| in sets escaped"),
        ({"regex": "(?=a)b"}, "must be without look-around"),
        ({"regex": r"(a)\1"}, "must be without look-around, back-references"),
        ({"regex": r"a\b"}, "must be without look-around"),
        ({"regex": "(?x) a"}, "must be without (?x)"),
        ({"regex": r"[^\s\S]"}, "must match some text, and so must each of its parts"),
        ({"regex": "a{40000}"}, "must make an automaton of at most 32768 states, and this makes more"),
        ({"regex": "(?:[ab]*a[ab]{15})"}, "must make an automaton of at most 32768 states, and this makes more"),
        ({"regex": "abc", "max_tokens": 2}, "takes 3 tokens, and 2 may be written; raise max_tokens"),
        ({"json_schema": "{"}, "json_schema must be JSON: Expecting"),
        ({"json_schema": "false"}, "json_schema must accept some JSON value, and this accepts none"),
        ({"json_schema": '{"not": {}}'}, "json_schema at # must be without not, which cannot be kept"),
    ],
    ids=lambda part: None if isinstance(part, str) else str(part)[:30].encode("ascii", "replace").decode(),
)
def test_a_form_that_cannot_be_kept_is_refused(loaded, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        generate(loaded[0], "hello", **options)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--choices"], "choices must name at least one text"),
        (["--choices", "a", "--regex", "a"], "give choices or regex, not both"),
        (["--regex", "a", "--stop", "b"], "stop cuts texts"),
        (["--regex", "a("], "is malformed: missing )"),
        (["--json-schema", "none.json"], "No such file or directory: none.json"),
        (["--choices", "a", "--ban", "a"], "ban must leave some text"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_asked_wrongly_it_says_so_in_one_line_and_writes_nothing(folder, capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        main(["--model", str(folder), "--prompt", "hello", *flags])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_the_command_takes_choices_an_expression_or_a_schema_and_tells_which(folder, tmp_path, capsys):
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    forms = {
        "choices": (["--choices", "none"], ["none"]),  # a text, not the absence of one
        "regex": (["--regex", "[ab]{5}"], "[ab]{5}"),
        "json_schema": (["--json-schema", str(tmp_path / "person.json")], str(tmp_path / "person.json")),
    }
    for name, (flags, told) in forms.items():
        main(["--model", str(folder), "--prompt", "hello", "--json", *flags])
        record = json.loads(capsys.readouterr().out)
        assert record["constrain"] == dataclasses.asdict(ConstrainConfig()) | {name: told}
        assert record["text"] == "none" if name == "choices" else record["text"]
    main(["--model", str(folder), "--prompt", "moon: ", "--json-schema", "json", "--seed", "3", "--max-tokens", "9"])
    assert isinstance(json.loads(capsys.readouterr().out.removeprefix("moon: ")), dict)


@pytest.mark.slow
def test_a_process_refuses_what_cannot_be_in_one_line(folder, command):
    done = command("trm_mlx.generate", "--model", folder, "--prompt", "a", "--regex", "[0-9]{30}", "--max-tokens", 10)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert b"the shortest text of that form takes 30 tokens, and 10 may be written" in done.stderr


@pytest.mark.slow
def test_the_benchmark_prints_what_each_form_costs(folder, capsys):
    import constrain

    constrain.main(["--model", str(folder), "--turns", "1", "--max-tokens", "160"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["choices", "regex", "schema"]
    assert all(re.search(r"ms_per_token  free .*x  by itself \d+ .* us_per_token", line) for line in lines)
