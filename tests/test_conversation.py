"""Turns of a conversation: what the model is told, what is forgotten, what a file of it holds."""

import json

import mlx.core as mx
import pytest
from tiny_folder import text

import trm_mlx
from trm_mlx import sources
from trm_mlx.cache import CacheConfig
from trm_mlx.decode.conversation import Conversation
from trm_mlx.decode.sampling import SamplingConfig
from trm_mlx.decode.step import StepModel
from trm_mlx.decode.stream import StreamConfig, events
from trm_mlx.decode.words import WordsConfig

pytest_plugins = ["tiny_folder"]


@pytest.fixture(scope="module")
def model(folder):
    return trm_mlx.load(folder)


def begun(model, system: str = "", *, kind: CacheConfig | None = None, seed: int = 0, **settings) -> Conversation:
    settings = StreamConfig(**{"max_tokens": 12, **settings})
    made = Conversation(model, model.tokenizer, settings, SamplingConfig(seed=seed), kind=kind or CacheConfig())
    made.system = system
    return made


def said(conversation: Conversation, message: str) -> str:
    return "".join(event.text for event in conversation.reply(message))


def told(conversation: Conversation) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in conversation.messages]


# The turns.


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CacheConfig(), CacheConfig(cache_window=40)], ids=["full", "window"])
@pytest.mark.parametrize("depth", [None, 1])
def test_every_reply_is_that_of_all_messages_read_anew(model, kind, depth):
    conversation, system = begun(model, "be kind", kind=kind, seed=5, depth=depth), "be kind"
    messages = [{"role": "system", "content": system}]
    for number, message in enumerate(["hello moon", "the river", "and her friend", "the river"]):
        messages.append({"role": "user", "content": message})
        ids = [model.tokenizer.bos, *model.tokenizer.chat(messages, reply=True)]
        settings = StreamConfig(max_tokens=12, depth=depth)
        wanted = list(events(model, model.tokenizer, ids, settings, SamplingConfig(seed=5 + number), kind=kind))
        found = list(conversation.reply(message))
        assert [event.token for event in found] == [event.token for event in wanted]
        assert found[-1].reply.text == "".join(event.text for event in wanted)
        messages.append({"role": "assistant", "content": found[-1].reply.text})
    assert conversation.messages == messages[1:]


def test_what_was_read_is_not_read_again(model, monkeypatch):
    conversation, counts, plain = begun(model, text(40), max_tokens=1), [], StepModel.append
    monkeypatch.setattr(
        StepModel, "append", lambda self, ids, **how: counts.append(len(ids)) or plain(self, ids, **how)
    )
    for _ in range(3):
        said(conversation, "moon")
    assert counts[0] > 50
    assert max(counts[1:]) < 20


def test_a_reply_that_is_closed_stays_as_far_as_it_came(model):
    conversation, pieces = begun(model, max_tokens=40), []
    events = conversation.reply("hello moon")
    for event in events:
        pieces.append(event.text)
        if len(pieces) == 6:
            break
    events.close()
    assert told(conversation) == [("user", "hello moon"), ("assistant", "".join(pieces))]
    assert conversation.sampling.seed == 1
    assert said(conversation, "the river")


def test_a_message_that_gets_no_reply_is_forgotten(model, tiny):
    conversation = begun(model)
    said(conversation, "hello")
    before = told(conversation)
    conversation.reply("unread").close()
    with pytest.raises(ValueError, match=r"the prompt must have 1 to 511 tokens, .*; shorten it, or take a model"):
        said(conversation, text(600))
    with pytest.raises(ValueError, match="lone surrogate"):
        said(conversation, "a\udcff")
    assert (told(conversation), conversation.sampling.seed) == (before, 1)
    assert said(conversation, "moon")


def test_reset_forgets_what_was_said_and_keeps_the_system_text(model):
    conversation = begun(model, "be kind")
    first = said(conversation, "hello moon")
    conversation.reset()
    conversation.sampling = SamplingConfig()
    assert said(conversation, "hello moon") == first
    assert len(conversation.messages) == 2


def test_a_depth_is_of_all_later_replies(model):
    conversation = begun(model)
    said(conversation, "hello")
    conversation.deepen(1)
    assert (conversation.kept.depth, conversation.settings.depth) == (1, 1)
    conversation.reset()
    conversation.sampling = SamplingConfig()
    assert said(conversation, "hello") == said(begun(model, depth=1), "hello")
    with pytest.raises(ValueError, match="depth must be 1 to 2"):
        conversation.deepen(3)
    assert conversation.kept.depth == 1


def test_banned_words_stay_banned(model):
    sampling, words = SamplingConfig(), WordsConfig(ban=("e", "a"))
    conversation = Conversation(model, model.tokenizer, StreamConfig(max_tokens=40), sampling, words)
    assert not {"e", "a"} & set(said(conversation, "hello"))


# A full context.


def test_the_oldest_turns_are_dropped_whole_and_the_system_text_is_not(model, monkeypatch):
    conversation, seen, system = begun(model, "be kind, quick queen"), [], "be kind, quick queen\n\n"
    chat = type(model.tokenizer).chat
    monkeypatch.setattr(
        type(model.tokenizer),
        "chat",
        lambda self, messages, **how: seen.append(messages) or chat(self, messages, **how),
    )
    dropped = []
    for number in range(12):
        message = text(30, seed=number)
        said(conversation, message)
        dropped.append(conversation.dropped)
        messages = seen[-1]  # what the model was told
        ids = chat(model.tokenizer, messages, reply=True)
        assert len(ids) + 1 + 12 <= model.config.context
        assert messages[0] == {"role": "system", "content": system.strip()}
        assert messages[1:] == [*conversation.messages[2 * dropped[-1] : -2], {"role": "user", "content": message}]
    assert dropped[0] == 0 < dropped[-1] < 11
    assert dropped == sorted(dropped)
    assert len(set(dropped)) < len(dropped)  # they go several at a time
    assert len(conversation.messages) == 24  # all that was said is there to be saved


def test_a_long_message_alone_may_use_the_room_of_its_reply(model):
    conversation = begun(model, max_tokens=400)
    said(conversation, "hello")
    message = next(text(n) for n in range(600, 1, -1) if len(model.tokenizer.encode(text(n))) < 505)
    *_, last = conversation.reply(message)
    assert (conversation.dropped, last.reason) == (1, "context")


# The file.


def test_a_saved_conversation_is_one_document_that_training_reads(model, tmp_path):
    conversation = begun(model, "be kind")
    said(conversation, "hello caf\u00e9 \u4f60")
    said(conversation, "moon")
    conversation.save(tmp_path / "a.jsonl")
    (document,) = sources.documents([tmp_path / "a.jsonl"])
    messages = [{"role": "system", "content": "be kind"}, *conversation.messages]
    assert list(document.messages) == messages
    assert document.ids(model.tokenizer) == model.tokenizer.chat(messages, reply=False)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


def test_a_loaded_conversation_goes_on_as_the_saved_one(model, tmp_path):
    conversation, other = begun(model, "be kind"), begun(model, "be quick", seed=1)
    said(conversation, "hello")
    said(other, "what was said here is replaced")
    conversation.save(tmp_path / "a.jsonl")
    other.load(tmp_path / "a.jsonl")
    other.sampling = conversation.sampling
    assert (other.system, other.messages) == (conversation.system, conversation.messages)
    assert said(other, "moon") == said(conversation, "moon")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n', "must hold one conversation, a line of messages, got text"),
        (b'{"prompt": "a", "response": "b"}\n' * 2, "must hold one conversation, a line of messages, got more"),
        (
            b'{"messages": [{"role": "user", "content": "a"}]}',
            "must end with a reply, got a message of the user last",
        ),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "message 0 must be from 'user'"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "must have a role and a content as text"),
        (b'{"messages": []}', "must hold text, got nothing but blanks"),
        (b"", "must hold text, got nothing but blanks"),
        (b"{", "must be one JSON object"),
        (b'{"text": "\xff"}', "must be UTF-8, got byte 0xFF"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused_and_changes_nothing(model, tmp_path, content, message):
    conversation = begun(model)
    said(conversation, "hello")
    before = told(conversation)
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        conversation.load(tmp_path / "a.jsonl")
    assert told(conversation) == before


def test_files_that_cannot_be_are_refused(model, tmp_path):
    conversation = begun(model)
    with pytest.raises(FileNotFoundError, match="no conversation at"):
        conversation.load(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="a conversation must have a reply before it is saved"):
        conversation.save(tmp_path / "a.jsonl")
    said(conversation, "hello")
    with pytest.raises(ValueError, match=r"a conversation must be in a \.jsonl file, got .*a\.txt"):
        conversation.save(tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def test_a_saved_reply_may_hold_any_character(model, tmp_path):
    conversation = begun(model, max_tokens=60)
    conversation.sampling = SamplingConfig(temperature=5, top_k=0)
    said(conversation, 'quotes " and \\ and \u2028')
    conversation.save(tmp_path / "a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_bytes())["messages"] == conversation.messages


def test_scores_that_are_no_numbers_are_an_error_of_that_reply_alone(model, folder):
    broken = trm_mlx.load(folder)
    conversation, whole = begun(broken), broken.final_norm.weight
    broken.final_norm.weight = whole * mx.nan
    with pytest.raises(ValueError, match="logits must be finite, or -inf to forbid a token, got NaN"):
        said(conversation, "hello")
    assert conversation.messages == []
