"""Tokenizers of other models: their ids, their end token as token 0, their bytes."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from lm.data.config import DataConfig
from lm.data.prepare import load_prepared, prepare
from lm.data.pretrained import pretrained_tokenizer
from lm.data.tokenizer import encode_documents, token_bytes
from lm.vocabulary import END_ID
from tests.lm.data.test_tokenizer import CODE, PARTS, odd_texts

TEXTS = [CODE, *PARTS] * 3


def byte_level() -> Tokenizer:
    """As those of Llama 3 and Qwen: special tokens lie behind the vocabulary."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(["<|begin|>", "<|end|>"])
    made.add_tokens(["<|plain|>"])
    return made


def sentencepiece() -> Tokenizer:
    """As those of Llama 2 and Mistral: a space before the text, and bytes as <0x0A>."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special[:3], show_progress=False
    )
    made.train_from_iterator([" ".join("defghijklmnop") * 3], trainer)
    loaded = json.loads(made.to_str())
    known = loaded["model"]["vocab"]
    known |= {piece: len(known) + i for i, piece in enumerate(special[3:])}
    return Tokenizer.from_str(json.dumps(loaded))


def save(made: Tokenizer, folder, end: str, begin: str):
    made.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}",
        special_tokens=[(x, made.token_to_id(x)) for x in (begin, end)],
    )
    made.enable_truncation(5)
    made.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json"), made.get_vocab_size()


@pytest.mark.parametrize(
    "make, begin, end",
    [(byte_level, "<|begin|>", "<|end|>"), (sentencepiece, "<s>", "</s>")],
)
def test_ids_are_those_of_the_file_but_for_the_end(make, begin, end, tmp_path):
    theirs = make()
    file, size = save(theirs, tmp_path, end, begin)
    ours = pretrained_tokenizer(file, end, size)
    theirs.no_truncation()
    ids, swapped = theirs.get_vocab(), theirs.token_to_id(end)
    moved = {token: {0: swapped, swapped: 0}.get(i, i) for token, i in ids.items()}
    assert ours.get_vocab() == moved and ours.token_to_id(end) == END_ID
    lengths, texts = token_bytes(ours), [*odd_texts(60), f"{end} {begin} {end}"]
    theirs.encode_special_tokens = True
    if make is sentencepiece:  # it takes this sign for a space
        texts = [text.replace("▁", "") for text in texts]
    for text, found in zip(texts, encode_documents(ours, texts), strict=True):
        assert found[0] == found[-1] == END_ID and END_ID not in found[1:-1]
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert [{0: swapped, swapped: 0}.get(i, i) for i in expected] == found[
            1:-1
        ].tolist()
        assert ours.decode(found[1:-1].tolist()) == text
        prefix = make is sentencepiece and text != ""
        assert lengths[found].sum() == len(text.encode()) + prefix


def test_rows_are_made_with_it_and_its_file_decides_them(tmp_path):
    file, size = save(byte_level(), tmp_path, "<|end|>", "<|begin|>")
    (tmp_path / "corpus.txt").write_text(CODE * 20)
    config = DataConfig(
        source="text", path=str(tmp_path / "corpus.txt"), cache=str(tmp_path / "cache"),
        tokenizer="pretrained", tokenizer_file=file, vocab_size=size, seq_len=32,
        leakage="keep",  # the text repeats itself
    )  # fmt: skip
    beside = tmp_path / "tokenizer_config.json"
    for eos in ("<|end|>", {"content": "<|begin|>", "special": True}):
        beside.write_text(json.dumps({"eos_token": eos}))
        data = prepare(config)
        ids = np.concatenate([data.train.tokens[0], data.validation.tokens[-1]])
        assert data.tokenizer.id_to_token(END_ID) == (
            eos if eos == "<|end|>" else "<|begin|>"
        )
        assert ids[0] == END_ID and END_ID in ids[1:]
        loaded = load_prepared(config, data.meta["fingerprint"])
        assert loaded.tokenizer.decode(data.train.tokens[0].tolist()) in CODE * 20
    assert len([*(tmp_path / "cache" / "rows").glob("*/meta.json")]) == 2


def test_what_cannot_be_used_is_refused(tmp_path):
    made = byte_level()
    file, size = save(made, tmp_path, "<|end|>", "<|begin|>")
    whole = pretrained_tokenizer(file, "<|end|>", size).to_str()
    old = json.loads((tmp_path / "tokenizer.json").read_text())
    del old["model"]["type"], old["model"]["byte_fallback"]  # as gpt2's file is
    (tmp_path / "tokenizer.json").write_text(json.dumps(old))
    assert pretrained_tokenizer(file, "<|end|>", size).to_str() == whole
    for end, number, words in [
        ("", size, r"set data.end_token to .*special tokens: <\|begin\|>, <\|end\|>"),
        ("<eos>", size, "end token '<eos>' is not in"),
        ("<|end|>", 300, f"has {size} tokens, and data.vocab_size is 300"),
    ]:
        with pytest.raises(ValueError, match=words):
            pretrained_tokenizer(file, end, number)
    made.normalizer = normalizers.Lowercase()
    made.save(file)
    with pytest.raises(ValueError, match="does not give back every text"):
        pretrained_tokenizer(file, "<|end|>", size)
    Tokenizer(models.Unigram([("a", 0.0), ("b", -1.0)], 0)).save(file)
    with pytest.raises(ValueError, match="has a Unigram model"):
        pretrained_tokenizer(file, "a", 2)
    for content, words in [("{", "cannot be read"), ("{}", "is not a tokenizer.json")]:
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            pretrained_tokenizer(file, "a", 2)
    with pytest.raises(ValueError, match="tokenizer_file is empty"):
        DataConfig("text", tokenizer="pretrained").validate()
