"""The text encoder inside training: which layers learn, checkpointing, and what is never run while it loads."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmsa_decalign.encoder import TextEncoder, load_encoder
from mmsa_decalign.errors import InputError
from mmsa_decalign.settings import Settings
from mmsa_decalign.trainer import _optimizer

LAYERS = 3


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers of width 24, dropout on, 60 tokens."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=60, hidden_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
                         intermediate_size=32, max_position_embeddings=40)).save_pretrained(folder)
    return folder


def tokens(rows: int = 4, steps: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 60, (rows, steps), generator=generator)
    mask = (torch.arange(steps) < torch.tensor([[steps], [4], [7], [2]])[:rows]).long()
    return torch.stack([ids * mask, mask, mask * 0], dim=1)


def learn(encoder: TextEncoder) -> Tensor:
    """One backward pass in training mode, dropout from a fixed seed; returns the loss."""
    encoder.train()
    torch.manual_seed(5)
    states, valid = encoder(tokens())
    loss = (states * valid[:, :, None]).pow(3).mean()
    loss.backward()
    return loss.detach()


def gradients(encoder: TextEncoder) -> dict[str, Tensor]:
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


def kept_bytes(encoder: TextEncoder) -> int:
    """Bytes that the forward pass keeps for the backward pass beside the parameters, each storage once."""
    parameters = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    kept: dict[int, int] = {}
    alive = []  # or a freed storage would lend its address to the next

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    encoder.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states, _ = encoder(tokens())
    assert states.requires_grad
    return sum(kept.values())


# Layers that do not learn


@pytest.mark.parametrize("count", [0, 1, LAYERS - 1])
def test_embeddings_and_first_layers_get_no_gradient(bert: Path, count: int) -> None:
    encoder = TextEncoder(str(bert), True, freeze_layers=count)
    learn(encoder)
    with_gradient = {name.removeprefix("model.") for name in gradients(encoder)}
    frozen = ("embeddings.", *(f"encoder.layer.{i}." for i in range(count)))
    every = {name for name, _ in encoder.model.named_parameters() if not name.startswith("pooler.")}  # nobody asks it
    assert with_gradient == {name for name in every if not name.startswith(frozen)}
    assert {name for name, p in encoder.model.named_parameters() if not p.requires_grad} == {
        name for name in every if name.startswith(frozen)}


def test_without_the_setting_everything_learns(bert: Path) -> None:
    encoder = TextEncoder(str(bert), True)
    learn(encoder)
    assert "model.embeddings.word_embeddings.weight" in gradients(encoder)
    assert all(p.requires_grad for p in encoder.parameters())


def test_an_optimiser_knows_nothing_of_frozen_layers(bert: Path) -> None:
    encoder = TextEncoder(str(bert), True, freeze_layers=2)
    model = nn.Module()
    model.text_encoder, model.head = encoder, nn.Linear(24, 1)
    settings = Settings(use_bert=True, freeze_layers=2, bert_learning_rate=1e-5, learning_rate=1e-3)
    optimizer = _optimizer(model, settings)
    learn(encoder)
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    optimizer.step()
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen
    assert known.isdisjoint({id(p) for p in encoder.parameters() if not p.requires_grad})
    assert {id(p) for p in optimizer.state} <= known
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in encoder.parameters() if p.requires_grad} == {1e-5}
    assert {rates[id(p)] for p in model.head.parameters()} == {1e-3}
    moved = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in gradients(encoder)}


def test_frozen_layers_have_no_dropout_and_the_others_have(bert: Path) -> None:
    encoder = TextEncoder(str(bert), True, freeze_layers=1).train()
    layers = encoder.model.encoder.layer
    assert not encoder.model.embeddings.training
    assert [layer.training for layer in layers] == [False, True, True]
    seen: list[Tensor] = []
    hooks = [layers[i].register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
             for i in (0, 1)]
    for _ in range(2):
        encoder(tokens())
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[1], seen[3])
    assert not encoder.eval().model.encoder.layer[2].training


@pytest.mark.parametrize("count", [LAYERS, LAYERS + 1, -1])
def test_more_layers_than_there_are_is_refused(bert: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"has {LAYERS} layers; expected 0 to {LAYERS - 1}, or use_finetune=false"):
        TextEncoder(str(bert), True, freeze_layers=count)


def test_layers_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertModel

    AlbertModel(AlbertConfig(vocab_size=60, embedding_size=8, hidden_size=24, num_attention_heads=4,
                             intermediate_size=32, max_position_embeddings=40)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a albert, cannot be told apart; leave freeze_layers out"):
        TextEncoder(str(tmp_path), True, freeze_layers=1)
    learn(TextEncoder(str(tmp_path), True))


# Checkpointing


@pytest.mark.parametrize("freeze_layers", [None, 0, 2])
def test_checkpointing_changes_no_number(bert: Path, freeze_layers: int | None) -> None:
    """With dropout: it must be drawn the same the second time."""
    plain, thrifty = (TextEncoder(str(bert), True, freeze_layers=freeze_layers, checkpointing=on)
                      for on in (False, True))
    assert torch.equal(learn(plain), learn(thrifty))
    ours, theirs = gradients(thrifty), gradients(plain)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, gradient in theirs.items():
        assert torch.equal(ours[name], gradient), name


def test_checkpointing_keeps_less(bert: Path) -> None:
    plain, frozen, thrifty, both = (
        kept_bytes(TextEncoder(str(bert), True, freeze_layers=count, checkpointing=on))
        for count, on in ((None, False), (2, False), (None, True), (2, True)))
    assert thrifty < plain / 3
    assert frozen < plain / 2  # one layer of three keeps what it needs
    assert both < thrifty


def test_layers_are_run_twice_only_where_they_learn(bert: Path) -> None:
    encoder = TextEncoder(str(bert), True, freeze_layers=1, checkpointing=True)
    runs = [0] * LAYERS

    def counting(i: int) -> Any:
        def count(module: nn.Module, inputs: Any, outputs: Any) -> None:
            runs[i] += 1
        return count

    for i, layer in enumerate(encoder.model.encoder.layer):
        layer.intermediate.register_forward_hook(counting(i))  # inside of what is run again
    learn(encoder)
    assert runs == [1, 2, 2]
    with torch.no_grad():
        encoder.eval()(tokens())
    assert runs == [2, 3, 3]


def test_a_frozen_encoder_is_not_checkpointed(bert: Path) -> None:
    encoder = TextEncoder(str(bert), False, checkpointing=True).train()
    states, _ = encoder(tokens())
    assert not states.requires_grad
    assert not any(getattr(module, "gradient_checkpointing", False) for module in encoder.modules())


# Settings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"freeze_layers": -1}, "freeze_layers=-1: expected null or 0 or more"),
        ({"freeze_layers": 1.5}, "freeze_layers=1.5 has the wrong type: expected a whole number or null"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing=1 has the wrong type: expected true or false"),
        ({"freeze_layers": 1, "use_finetune": False}, "freeze_layers is about an encoder that learns"),
        ({"gradient_checkpointing": True, "use_bert": False}, "gradient_checkpointing is about an encoder that learns"),
    ],
)
def test_settings_that_say_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**{"use_bert": True, **given})


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown DecAlign setting 'freeze_layer'.*'freeze_layers'"):
        Settings.from_args({"freeze_layer": 1})
    assert Settings.from_args({"use_bert": True, "freeze_layers": 0, "gradient_checkpointing": True}).freeze_layers == 0


def test_the_settings_reach_the_encoder(bert: Path) -> None:
    from mmsa_decalign.model import DecAlign

    small = {"feature_dims": (8, 3, 3), "d_model": 8, "num_heads": 2, "nlevels": 1, "use_bert": True}
    model = DecAlign(Settings(**small, pretrained=str(bert), freeze_layers=2, gradient_checkpointing=True))
    layers = model.text_encoder.model.encoder.layer
    assert [next(layer.parameters()).requires_grad for layer in layers] == [False, False, True]
    assert all(layer.gradient_checkpointing for layer in layers)
    assert not model.train().text_encoder.model.embeddings.training


# Loading


class Trap:
    """What a pickle would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_of_weights_runs_no_code(bert: Path, tmp_path: Path) -> None:
    folder, trace = tmp_path / "bert", tmp_path / "trace"
    shutil.copytree(bert, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Trap(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_encoder(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_encoder(str(folder))
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace)))
    assert trace.exists(), "the trap is none"


@pytest.mark.parametrize("known", [False, True])
def test_code_beside_the_weights_is_not_run(bert: Path, tmp_path: Path, known: bool) -> None:
    folder, trace = tmp_path / "bert", tmp_path / "trace"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "own.py").write_text(f"import pathlib\npathlib.Path({str(trace)!r}).touch()\n")
    (folder / "config.json").write_text(json.dumps(config | ({} if known else {"model_type": "own"})))
    if known:  # the library's own class of that name is taken
        assert type(load_encoder(str(folder))).__module__.startswith("transformers.")
    else:
        with pytest.raises(InputError, match="cannot be loaded"):
            load_encoder(str(folder))
    assert not trace.exists()
