"""Tokenisers: all text comes back, widths add up to its bytes, streams decode as wholes do, what does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import InvalidType, InvalidValue
from foveate.tasks.language import tokenise
from foveate.tasks.language.find_tokeniser import find_tokeniser
from foveate.tasks.language.tokenise import ByteTokeniser, CharacterTokeniser, JsonTokeniser, from_plain, pieces

tokenizers = pytest.importorskip("tokenizers")

TEXTS = (
    "a",
    "naïve café",
    "日本語のテキスト",
    "emoji 🙂👩‍👩‍👧 end",
    "tabs\tand\r\nlines\n\n\n",
    " leading",
    "\x00\x7f",
)
ALPHABET = "".join(sorted(set("".join(TEXTS))))


def byte_level(vocabulary=300):
    """A byte-level BPE tokenizer, trained on a few words."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(["the cat sat on the mat, the naïve café 日本語"] * 5, trainer)
    return inner


def metaspace():
    """A tokenizer of the kind that sentencepiece makes: words begin with a mark, foreign characters fall to bytes."""
    vocabulary = {"<unk>": 0, "▁": 1, "▁the": 2, "e": 3, "x": 4, **{f"<0x{i:02X}>": 5 + i for i in range(256)}}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    inner.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    return inner


def words():
    """A tokenizer that knows three words."""
    model = tokenizers.models.WordLevel({"the": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]")
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return inner


TOKENISERS = {
    "bytes": ByteTokeniser(),
    "characters": CharacterTokeniser(ALPHABET),
    "bpe": JsonTokeniser(byte_level().to_str(), "bpe"),
    "metaspace": JsonTokeniser(metaspace().to_str(), "metaspace"),
}


def check(tokeniser, text):
    tokens, widths = tokeniser.tokens(text)
    assert tokens.dtype == widths.dtype == np.int64
    assert len(tokens) == len(widths)
    assert widths.sum() == len(text.encode())
    assert (widths >= 0).all()
    assert tokens.max(initial=0) < tokeniser.end_of_document
    assert tokeniser.decode(tokens.tolist()) == text
    decoder = tokeniser.decoder()
    parts = [decoder.push(int(t)) for t in tokens]
    assert "".join([*parts, decoder.flush()]) == text
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("name", TOKENISERS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(name, text):
    check(TOKENISERS[name], text)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd▁"), max_size=30))
def test_any_text_comes_back(text):
    for name in ("bytes", "bpe", "metaspace"):
        check(TOKENISERS[name], text)


@pytest.mark.parametrize("name", TOKENISERS)
def test_plain_values_make_it_anew(name):
    tokeniser = TOKENISERS[name]
    again = from_plain(json.loads(json.dumps(tokeniser.plain)))
    assert type(again) is type(tokeniser)
    assert (again.name, again.vocabulary) == (tokeniser.name, tokeniser.vocabulary)
    assert again.tokens(TEXTS[1])[0].tolist() == tokeniser.tokens(TEXTS[1])[0].tolist()


def test_widths_are_the_bytes_of_each_token():
    tokens, widths = TOKENISERS["bpe"].tokens("the 日")
    inner = byte_level()
    assert inner.id_to_token(int(tokens[0])) == "the"
    assert widths[0] == 3
    assert CharacterTokeniser("aé日").tokens("日aé")[1].tolist() == [3, 1, 2]


def test_ends_of_documents_are_left_out_and_half_characters_replaced():
    for tokeniser in TOKENISERS.values():
        end = tokeniser.end_of_document
        tokens = tokeniser.tokens("a")[0].tolist()
        assert end == tokeniser.vocabulary - 1
        assert tokeniser.decode([end, *tokens, end]) == "a"
        assert tokeniser.decoder().push(end) == ""
        with pytest.raises(InvalidValue, match=f"token {end + 1} is not in the vocabulary"):
            tokeniser.decode([end + 1])
    assert ByteTokeniser().decode([0xE9]) == "\ufffd"
    for name in ("bytes", "bpe"):
        decoder = TOKENISERS[name].decoder()
        first = TOKENISERS[name].tokens("🙂")[0].tolist()[0]
        assert decoder.push(first) == ""
        assert decoder.flush() == "\ufffd"


def test_long_texts_are_cut_behind_line_breaks(monkeypatch):
    monkeypatch.setattr(tokenise, "PIECE", 10)
    text = "one\ntwo three four\n" + "x" * 25 + "\n\nlast"
    found = list(pieces(text))
    assert "".join(found) == text
    assert found[0] == "one\n"
    assert max(map(len, found)) <= 10
    check(TOKENISERS["bpe"], text)


def test_what_comes_from_files(tmp_path):
    assert isinstance(find_tokeniser(None), ByteTokeniser)
    assert find_tokeniser("characters") is None
    file = tmp_path / "tokenizer.json"
    byte_level().save(str(file))
    for where in (file, str(file), tmp_path):
        found = find_tokeniser(where)
        assert isinstance(found, JsonTokeniser)
        assert found.vocabulary == byte_level().get_vocab_size() + 1
    transformers = pytest.importorskip("transformers")
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level())
    saved.save_pretrained(tmp_path / "saved")
    check(find_tokeniser(tmp_path / "saved"), "the café")


def test_truncation_and_special_tokens_of_the_file_are_not_applied(tmp_path):
    inner = byte_level()
    inner.add_special_tokens(["<s>"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    inner.enable_truncation(2)
    inner.enable_padding(length=50)
    check(JsonTokeniser(inner.to_str(), "strict"), "the cat sat on the mat")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{}", "is not a tokenizer.json"),
        (b"\xff{}", "is not a tokenizer.json: byte 0 is not UTF-8"),
        (b"not json", "is not a tokenizer.json"),
    ],
)
def test_files_that_are_no_tokenizers(tmp_path, content, says):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InvalidValue, match=says):
        find_tokeniser(tmp_path)


def test_tokenizers_that_do_not_fit(tmp_path):
    with pytest.raises(InvalidValue, match=r"does not give all text back \('\\ndances' comes back as ' \[UNK\]'\)"):
        JsonTokeniser(words().to_str(), "words").tokens("the cat\ndances")
    lowering = byte_level()
    lowering.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(InvalidValue, match="'lower' does not give all text back"):
        JsonTokeniser(lowering.to_str(), "lower").tokens("The")
    huge = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 2_000_000}, unk_token="a"))
    with pytest.raises(InvalidValue, match="numbers its tokens up to 2000000: at most 1048574 is possible"):
        JsonTokeniser(huge.to_str(), "huge")
    with pytest.raises(InvalidValue, match="has no tokens: name another one"):
        JsonTokeniser(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str(), "empty")
    with pytest.raises(InvalidValue, match=r"tokenizer='gone' is not possible: there is no such file"):
        find_tokeniser("gone")
    with pytest.raises(InvalidValue, match=r"is a folder without tokenizer.json"):
        find_tokeniser(tmp_path)
    with pytest.raises(InvalidType, match="tokenizer=3 is not possible"):
        find_tokeniser(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="kind='x' of a tokeniser"):
        from_plain({"kind": "x"})
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(InvalidValue, match="cannot be opened by transformers"):
        find_tokeniser(tmp_path)


def test_characters_that_training_did_not_have():
    with pytest.raises(InvalidValue, match=r"the character 'z' \(number 3 of the text\) is none of the 2"):
        CharacterTokeniser("ab").tokens("abz")
