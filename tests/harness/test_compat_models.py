"""Patches of MMSA's models and trainers: each fault without its patch, its absence with it, MMSA as before after it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from easydict import EasyDict
from harness_matrix import small_settings, write_encoder, write_features

from mmsa_decalign.errors import InputError
from mmsa_decalign.harness import compat_encoders, rewrite, runner
from mmsa_decalign.harness.compat import PATCHES, apply_patches
from mmsa_decalign.harness.compat_encoders import fit_settings
from mmsa_decalign.harness.compat_models import MODEL_PATCHES
from mmsa_decalign.harness.encoders import encoder_width
from mmsa_decalign.harness.registry import active

BY_NAME = {patch.name: patch for patch in PATCHES}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide as MMSA takes every encoder to be."""
    return write_encoder(tmp_path_factory.mktemp("encoder"), width=768)


@contextmanager
def mended(*names: str) -> Iterator[None]:
    """The patches of these names, in their order, and no other."""
    undos = []
    try:
        for name in names:
            assert BY_NAME[name].applies(), f"{name}: the fault is not there"
            undos.append(BY_NAME[name].apply())
        yield
    finally:
        while undos:
            undos.pop()()


def mmsa(name: str) -> Any:
    return importlib.import_module(f"MMSA.{name}")


def settings(model: str, dataset: str = "mosi", **more: Any) -> EasyDict:
    """MMSA's settings as MMSA_run completes them, with small layers."""
    from MMSA.config import get_config_regression

    args = get_config_regression(model, dataset)
    args.update({"train_mode": "regression", "device": "cpu", "cur_seed": 1, **small_settings(model), **more})
    return args


def batches(args: Any, sizes: tuple[int, ...] = (6, 5), steps: int = 7) -> list[dict[str, Any]]:
    """Random batches with everything that a trainer may read."""
    made = []
    for size in sizes:
        made.append({
            **{name: torch.randn(size, steps, width)
               for name, width in zip(("text", "audio", "vision"), args["feature_dims"], strict=True)},
            "labels": {letter: torch.rand(size, 1) - 0.5 for letter in "MTAV"},
            "index": torch.arange(size), "id": [str(row) for row in range(size)],
            "audio_lengths": torch.full((size,), steps), "vision_lengths": torch.full((size,), steps)})
    return made


def tokens(size: int = 4, steps: int = 7) -> torch.Tensor:
    """(size, 3, steps) with a padded tail in all but the first row."""
    mask = (torch.arange(steps) < torch.arange(steps, steps - size, -1)[:, None]).float()
    return torch.stack([torch.randint(1, 128, (size, steps)) * mask, mask, torch.zeros_like(mask)], dim=1)


# All of them


def everything_in_mmsa() -> dict[tuple[str, ...], Any]:
    """Every name of MMSA's modules, and of the classes that they define."""
    found: dict[tuple[str, ...], Any] = {}
    for name, module in list(sys.modules.items()):
        if name == "MMSA" or name.startswith("MMSA."):
            for key, value in vars(module).items():
                found[name, key] = value
                if inspect.isclass(value) and value.__module__ == name:
                    found.update({(name, key, member): vars(value)[member] for member in vars(value)})
    return found


def test_patches_leave_no_trace() -> None:
    import MMSA.run  # noqa: F401

    apply_patches()()  # imports whatever there is to import
    before = everything_in_mmsa()
    undo = apply_patches()
    changed = {key for key, value in everything_in_mmsa().items() if before.get(key) is not value}
    assert len(changed) >= len(MODEL_PATCHES)
    assert all(key[0].startswith("MMSA") for key in changed)
    undo()
    after = everything_in_mmsa()
    assert set(after) == set(before)
    assert all(after[key] is value for key, value in before.items() if key[-1] not in ("__doc__", "__dict__"))


def test_a_patch_that_fails_takes_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmsa_decalign.harness import compat

    trace: list[str] = []
    good = compat.Patch("good", lambda: True, lambda: lambda: trace.append("undone"), "")
    bad = compat.Patch("bad", lambda: True, lambda: 1 / 0, "")  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(compat, "PATCHES", (good, bad))
    with pytest.raises(ZeroDivisionError):
        compat.apply_patches()
    assert trace == ["undone"]


# Trainers


@pytest.mark.parametrize("name", ["singleTask.MULT", "singleTask.MMIM", "missingTask.TFR_NET"])
def test_scheduler_verbose(name: str) -> None:
    module = mmsa(f"trains.{name}")

    def make() -> Any:
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return module.ReduceLROnPlateau(optimizer, mode="min", factor=0.1, verbose=True, patience=0)

    if not BY_NAME["scheduler_verbose"].applies():
        pytest.skip("this torch takes verbose")
    with pytest.raises(TypeError, match="verbose"):
        make()
    with mended("scheduler_verbose"):
        scheduler = make()
        for loss in (1.0, 2.0):
            scheduler.step(loss)
        assert scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.1)
    with pytest.raises(TypeError, match="verbose"):
        make()


class Guess(torch.nn.Module):
    """Stands for a model of MMSA: the weights its trainers name, and outputs that depend on them."""

    def __init__(self, outputs: str = "M") -> None:
        super().__init__()
        parts = ("text_subnet", "audio_subnet", "video_subnet", "post_fusion")
        self.Model = torch.nn.ModuleDict({part: torch.nn.Linear(1, 1) for part in parts})
        for name in ("audio_factor", "video_factor", "text_factor", "fusion_weights", "fusion_bias", "bert", "mi"):
            self.Model.register_parameter(name, torch.nn.Parameter(torch.zeros(1)))
        self.outputs = outputs

    def forward(self, text: Any, audio: Any, vision: Any) -> dict[str, torch.Tensor]:
        x = sum(layer(text.mean(dim=(1, 2), keepdim=True)[:, 0]) for layer in self.Model.values())
        return dict.fromkeys(self.outputs, torch.tanh(x) / 2)


@pytest.mark.parametrize("name", ["MTFN", "MLMF", "MLF_DNN"])
def test_unbound_train_results(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer_class = getattr(mmsa(f"trains.multiTask.{name}"), name)

    def train() -> None:
        args = settings(name.lower(), "sims", model_save_path=tmp_path / "model.pth", KeyEval="Loss", early_stop=1)
        loader = batches(args)
        trainer_class(args).do_train(Guess("MTAV"), {"train": loader, "valid": loader, "test": loader})

    with pytest.raises(UnboundLocalError, match="train_results"):
        train()
    with mended("unbound_train_results"), caplog.at_level("INFO", "MMSA"):
        train()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("TRAIN")]
    assert len(lines) >= 2
    assert all("MAE" not in line for line in lines), "figures of the epoch before"
    assert (tmp_path / "model.pth").is_file()
    with pytest.raises(UnboundLocalError, match="train_results"):
        train()


class Mixed(Guess):
    """Stands for mmim: another call, and what its stages hand over."""

    def forward(self, text: Any, audio: Any, vision: Any, y: Any = None, mem: Any = None) -> dict[str, Any]:
        pairs = dict.fromkeys(("tv", "ta"), {"pos": torch.zeros(1), "neg": torch.zeros(1)})
        prediction = super().forward(text, audio[0], vision[0])["M"]
        return {"M": prediction, "lld": prediction.mean(), "nce": 0.0, "H": 0.0, "pn_dic": pairs}


def train_mmim(folder: Path, **more: Any) -> Any:
    args = settings("mmim", model_save_path=folder / "model.pth", early_stop=1, **more)
    loader = batches(args)
    trainer = mmsa("trains.singleTask.MMIM").MMIM(args)
    trainer.do_train(Mixed(), {"train": loader, "valid": loader})
    return trainer


def test_mmim_without_contrast(tmp_path: Path) -> None:
    with mended("scheduler_verbose"):
        with pytest.raises(UnboundLocalError, match="train_loss_mmilb"):
            train_mmim(tmp_path, contrast=False)
        with mended("mmim_without_contrast"):
            train_mmim(tmp_path, contrast=False)
            assert (tmp_path / "model.pth").is_file()
        with pytest.raises(UnboundLocalError, match="train_loss_mmilb"):
            train_mmim(tmp_path, contrast=False)


@pytest.mark.parametrize("name", ["MCTN", "MMIM"])
def test_a_new_trainer_tests_a_model_it_has_not_trained(name: str) -> None:
    class Either(Mixed):
        def forward(self, text: Any, audio: Any, vision: Any, *labels: Any, **more: Any) -> Any:
            if name == "MMIM":
                return super().forward(text, audio, vision)
            return torch.zeros(()), Guess.forward(self, text, audio, vision)["M"]

    args = settings(name.lower())

    def test() -> dict[str, float]:
        trainer = getattr(mmsa(f"trains.singleTask.{name}"), name)(args)
        return trainer.do_test(Either(), batches(args), mode="TEST")

    with pytest.raises(AttributeError, match="'model'"):
        test()
    with mended("test_without_training"):
        assert math.isfinite(test()["MAE"])
    with pytest.raises(AttributeError, match="'model'"):
        test()


# Batches of one sample


@pytest.mark.parametrize("model", ["ef_lstm", "mtfn", "mlmf", "mlf_dnn", "mmim"])
def test_a_model_predicts_one_sample_as_it_does_among_others(model: str, encoder: Path) -> None:
    dataset = "sims" if model in ("mtfn", "mlmf", "mlf_dnn") else "mosi"
    args = settings(model, dataset, seq_lens=[7, 7, 7])
    others: tuple[str, ...] = ()
    if model == "mmim":
        args.update({"pretrained": str(encoder), "bidirectional": False})
        others = ("encoder_by_folder", "settings_follow_the_encoder")

    def predict(size: int) -> torch.Tensor:
        batch = batches(args, (4,))[0]
        batch["text"] = tokens() if model == "mmim" else batch["text"]
        text, audio, vision = (batch[name][:size] for name in ("text", "audio", "vision"))
        if args.get("need_normalized"):
            audio, vision = (x.mean(dim=1, keepdim=True) for x in (audio, vision))
        if model == "mmim":
            audio, vision = (audio, torch.full((size,), 7)), (vision, torch.full((size,), 7))
        with torch.no_grad():
            return network(text, audio, vision)["M"]

    with mended(*others):
        network = mmsa("models.AMIO").AMIO(args).eval()
        torch.manual_seed(1)
        four = predict(4)
        with mended("batch_of_one"):
            torch.manual_seed(1)
            assert torch.equal(predict(4), four)
            torch.manual_seed(1)
            one = predict(1)
            assert one.shape == (1, 1)
            torch.testing.assert_close(one[0], four[0], rtol=1e-4, atol=1e-5)
        with contextlib.suppress(RuntimeError, IndexError):
            assert predict(1).shape != (1, 1)


def test_mfm_compares_one_prediction_with_one_label(tmp_path: Path) -> None:
    class Four(Guess):
        def forward(self, text: Any, audio: Any, vision: Any) -> Any:
            return super().forward(text, audio, vision)["M"], 0.0, 0.0, 0.0

    args = settings("mfm", early_stop=1, model_save_path=tmp_path / "model.pth")
    several, single = batches(args, (3, 4)), batches(args, (1, 1))
    trainer = mmsa("trains.singleTask.MFM").MFM(args)
    with pytest.raises(UserWarning, match="target size"):
        trainer.do_test(Four(), single)
    with pytest.raises(UserWarning, match="target size"):
        trainer.do_train(Four(), {"train": single, "valid": several})
    with mended("batch_of_one"):
        assert math.isfinite(trainer.do_test(Four(), single)["Loss"])
        trainer.do_train(Four(), {"train": single, "valid": several})
    assert (tmp_path / "model.pth").is_file()


def test_mmim_sorts_one_sample_by_its_label() -> None:
    part = mmsa("models.singleTask.MMIM").MMILB(4, 8)
    given = {"x": torch.randn(1, 4), "y": torch.randn(1, 8), "labels": torch.tensor([[0.5]])}
    assert part(**given)[1]["pos"].dim() == 3
    with mended("batch_of_one"):
        sorted_by_sign = part(**given)[1]
    assert (sorted_by_sign["pos"].shape, sorted_by_sign["neg"].shape) == ((1, 2), (0, 2))


def test_mmim_keeps_the_labels_of_one_sample(tmp_path: Path) -> None:
    args = settings("mmim")
    module = mmsa("trains.singleTask.MMIM")

    def train() -> torch.Tensor:
        trainer = module.MMIM(args)
        trainer.model = Mixed()
        trainer.optimizer_main = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
        return trainer.train_others({"train": batches(args, (3, 1))})[2]

    with pytest.raises(RuntimeError, match="zero-dimensional"):
        train()
    with mended("batch_of_one"):
        assert train().shape == (4,)


# Text encoders


def test_fit_settings_writes_what_follows_and_nothing_else(encoder: Path) -> None:
    for model, expected in {
        "misa": {"feature_dims": [32, 5, 20]},
        "self_mm": {"feature_dims": [32, 5, 20], "text_out": 32},
        "mctn": {},  # without use_bert the text features' width, which is 768
        "mult": {"use_finetune": False},
        "tfn": {},
    }.items():
        args = settings(model)
        args["pretrained"] = str(encoder)
        before = dict(args)
        fit_settings(args)
        assert {key: value for key, value in args.items() if before.get(key, ...) != value} == expected, model
    args = settings("mctn", feature_dims=[10, 30, 20])
    fit_settings(args)
    assert args["output_dim"] == 30


@pytest.mark.parametrize(
    ("steps", "wanted", "heads"),
    [([50, 500, 375], 25, 25), ([39, 400, 55], 25, 1), ([50, 500, 375], 7, 5), ([12, 24, 60], 25, 12),
     ([1, 1, 1], 25, 1)],
)
def test_heads_over_time_divide_the_steps(
    steps: list[int], wanted: int, heads: int, encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = settings("tfr_net", seq_lens=steps, num_temporal_head=wanted, pretrained=str(encoder))
    fit_settings(args)
    assert args["num_temporal_head"] == heads
    assert all(count % heads == 0 for count in steps)
    assert bool(caplog.records) == (heads != wanted)


def test_self_mm_and_tfr_net_are_built_for_768_without_the_patch(encoder: Path) -> None:
    amio = mmsa("models.AMIO").AMIO
    with mended("encoder_by_folder", "tfr_net_encoder", "positions_written_over"):
        network = amio(settings("self_mm", pretrained=str(encoder)))
        batch = batches(settings("self_mm"), (4,))[0]
        lengths = torch.full((4,), 7)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            network(tokens(), (batch["audio"], lengths), (batch["vision"], lengths))
        with pytest.raises(AssertionError):
            amio(settings("tfr_net", "sims", pretrained=str(encoder), seq_lens=[39, 400, 55]))
        with mended("settings_follow_the_encoder"):
            network = amio(settings("self_mm", pretrained=str(encoder)))
            assert network(tokens(), (batch["audio"], lengths), (batch["vision"], lengths))["M"].shape == (4, 1)
            amio(settings("tfr_net", "sims", pretrained=str(encoder), seq_lens=[39, 400, 55]))


def test_mult_with_an_encoder(encoder: Path) -> None:
    amio = mmsa("models.AMIO").AMIO
    with mended("encoder_by_folder"):
        with pytest.raises(AttributeError, match="use_finetune"):
            amio(settings("mult", use_bert=True, pretrained=str(encoder)))
        with mended("settings_follow_the_encoder"):
            network = amio(settings("mult", use_bert=True, pretrained=str(encoder)))
    assert not network.Model.text_model.use_finetune  # as MMSA's use_bert_finetune=false says
    batch = batches(settings("mult"), (4,))[0]
    assert network(tokens(), batch["audio"], batch["vision"])["M"].shape == (4, 1)


def misa(pretrained: Path) -> Any:
    torch.manual_seed(2)
    args = settings("misa", pretrained=str(pretrained), feature_dims=[encoder_width(str(pretrained)), 5, 20])
    return mmsa("models.singleTask.MISA").MISA(args).eval()


def test_misa_takes_the_width_of_its_encoder(encoder: Path, wide: Path) -> None:
    batch = batches(settings("misa"), (4,))[0]
    with mended("encoder_by_folder"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "enable_nested_tensor")
            theirs, narrow = misa(wide), misa(encoder)
        expected = theirs(tokens(), batch["audio"], batch["vision"])["M"]
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            narrow(tokens(), batch["audio"], batch["vision"])
        with mended("misa_width"):
            ours, narrow = misa(wide), misa(encoder)
            assert ours.state_dict().keys() == theirs.state_dict().keys()
            assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
            torch.manual_seed(0)
            assert narrow(tokens(), batch["audio"], batch["vision"])["M"].shape == (4, 1)
        assert expected.shape == (4, 1)


def test_misa_reads_audio_that_is_shorter_than_the_text(encoder: Path) -> None:
    audio = torch.randn(4, 7, 5)
    lengths = torch.tensor([7, 2, 1, 5])
    with mended("encoder_by_folder", "misa_width"):
        network = misa(encoder)
    layers = (torch.nn.LSTM(5, 5, bidirectional=True), torch.nn.LSTM(10, 5, bidirectional=True), torch.nn.LayerNorm(10))
    expected = network.extract_features(audio, torch.tensor([3, 2, 1, 3]), *layers)  # MMSA's own, told where to stop
    with pytest.raises((RuntimeError, ValueError)):
        network.extract_features(audio[:, :3], lengths, *layers)
    with mended("misa_width"):
        actual = network.extract_features(audio[:, :3], lengths, *layers)
    assert all(torch.equal(mine, his) for mine, his in zip(actual, expected, strict=True))


def test_tfr_net_loads_the_encoder_that_is_named(encoder: Path) -> None:
    owner = mmsa("models.missingTask.TFR_NET.model").TFR_NET
    args = settings("tfr_net", "sims", pretrained=str(encoder), seq_lens=[25, 25, 25], feature_dims=[32, 5, 20])
    asked: list[str] = []
    original = compat_encoders.encoder_folder

    def encoder_folder(pretrained: str) -> Path:
        asked.append(pretrained)
        return original(str(encoder))

    with mended("encoder_by_folder"):
        compat_encoders.encoder_folder = encoder_folder
        try:
            owner(args)
            with mended("tfr_net_encoder"):
                owner(args)
        finally:
            compat_encoders.encoder_folder = original
    assert asked == ["bert-base-uncased", str(encoder)]


def magnets(encoder: Path) -> Any:
    args = settings("bert_mag", pretrained=str(encoder), feature_dims=[32, 5, 20], seq_lens=[7, 7, 7])
    return mmsa("models.AMIO").AMIO(args)


def test_bert_mag_without_its_patches_asks_for_two_names_only(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = mmsa("models.singleTask.BERT_MAG")
    asked: list[str] = []

    def from_pretrained(name: str, **more: Any) -> Any:
        asked.append(name)
        return (None, None)

    monkeypatch.setattr(module.MAG_BertForSequenceClassification, "from_pretrained", from_pretrained)
    for language in ("en", "cn"):
        module.BERT_MAG(EasyDict(settings("bert_mag"), language=language, pretrained=str(encoder)))
    assert asked == ["bert-base-uncased", "bert-base-chinese"]


def test_bert_mag_on_transformers_5(encoder: Path) -> None:
    if not BY_NAME["bert_mag_transformers_5"].applies():
        pytest.skip("this transformers has what MMSA needs")
    with mended("bert_mag_encoder"), pytest.raises(AttributeError):
        magnets(encoder)
    with mended("bert_mag_encoder", "bert_mag_transformers_5"):
        network = magnets(encoder).eval()
        with torch.no_grad():
            network(tokens(), torch.randn(4, 7, 5), torch.randn(4, 7, 20))


def test_bert_mag_is_a_bert_with_magnets_behind_its_embeddings(encoder: Path) -> None:
    """Against the library's own BERT, with MMSA's MAG hooked in behind the embeddings."""
    from transformers import BertModel

    text, audio, vision = tokens(), torch.randn(4, 7, 5), torch.randn(4, 7, 20)
    with mended("bert_mag_encoder", "bert_mag_transformers_5"):
        network = magnets(encoder).eval()
        ours = network.Model.model
        bert = BertModel.from_pretrained(encoder).eval()
        for name, value in bert.state_dict().items():
            assert torch.equal(ours.bert.state_dict()[name], value), name
        bert.embeddings.register_forward_hook(lambda module, given, out: ours.bert.MAG(out, vision, audio))
        with torch.no_grad():
            pooled = bert(input_ids=text[:, 0].long(), attention_mask=text[:, 1],
                          token_type_ids=text[:, 2].long()).pooler_output
            expected = ours.classifier(pooled)
            actual = network(text, audio, vision)["M"]
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
            behind = text.clone()
            behind[1, 0, -1] = 9  # an id behind the mask
            torch.testing.assert_close(network(behind, audio, vision)["M"], actual, rtol=1e-5, atol=1e-6)
    fresh = [name for name, value in ours.named_parameters() if "MAG" in name and name.endswith("weight")]
    assert all(bool(ours.state_dict()[name].any()) for name in fresh)


# tfr_net's positions


@pytest.mark.parametrize("left_pad", [0, 1])
def test_positions(left_pad: int) -> None:
    module = mmsa("models.subNets.transformers_encoder.position_embedding")
    inputs = [torch.randn(3, length) * (torch.rand(3, length) > 0.3) for length in (4, 9, 5)]
    for buffer in list(vars(module.make_positions)):  # of models that other tests built
        delattr(module.make_positions, buffer)
    torch.set_warn_always(True)  # or torch says it once per process
    try:
        with pytest.warns(UserWarning, match="out tensor"):
            expected = [module.make_positions(x, 0, left_pad) for x in inputs]
    finally:
        torch.set_warn_always(False)
    with mended("positions_written_over"):
        for x, positions in zip(inputs, expected, strict=True):
            actual = module.make_positions(x, 0, left_pad)
            assert torch.equal(actual, positions)
            assert actual.dtype == positions.dtype
            assert torch.equal(module.make_positions(torch.where(x == 0, 1.0, 0.0), 1, 0),
                               torch.where(x == 0, 1, torch.arange(2, 2 + x.shape[1])))


# mctn


def mctn(**more: Any) -> Any:
    torch.manual_seed(4)
    return mmsa("models.singleTask.MCTN").MCTN(settings("mctn", **more))


def test_mctn_runs_where_its_settings_say() -> None:
    args = settings("mctn", feature_dims=[30, 5, 20], output_dim=30)
    batch = batches(args, (4,))[0]
    inputs = [batch[name] for name in ("text", "audio", "vision")]
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            mctn(output_dim=30)(*inputs, batch["labels"]["M"], None)
    with mended("mctn_device"):
        network = mctn(output_dim=30)
        assert (network.seq2seq1.device, network.seq2seq2.device) == ("cpu", "cpu")
        loss, prediction = network(*inputs, batch["labels"]["M"], None)
        assert prediction.shape == (4, 1)
        assert bool(torch.isfinite(loss))


def test_mctn_pads_narrow_text_as_it_pads_the_others() -> None:
    batch = batches(settings("mctn", feature_dims=[6, 5, 20]), (4,))[0]
    text, audio, vision = (batch[name] for name in ("text", "audio", "vision"))
    with mended("mctn_device"):
        network = mctn(output_dim=20)
        by_hand = torch.nn.functional.pad(text, (0, 14))
        torch.manual_seed(0)
        expected = network(by_hand, audio, vision, batch["labels"]["M"], None)
        torch.manual_seed(0)
        actual = network(text, audio, vision, batch["labels"]["M"], None)
    assert all(torch.equal(mine, his) for mine, his in zip(actual, expected, strict=True))


def test_mctn_takes_one_time_step() -> None:
    decoder = mmsa("models.singleTask.MCTN")
    attention = decoder.Attention(8)
    part = decoder.Decoder(6, 8, 0, 1, attention, bidirectional=True)
    given = (torch.randn(1, 6), torch.randn(1, 8), torch.randn(4, 1, 8))
    assert part(*given)[1].shape == (8,)
    with mended("mctn_device"):
        assert part(*given)[1].shape == (1, 8)
        assert part(torch.randn(3, 6), torch.randn(3, 8), torch.randn(4, 3, 8))[1].shape == (3, 8)


# Functions compiled anew


def fit(first: int, second: int = 2, *, third: int = 3) -> int:
    while True:
        if third == 3:
            total = first + second
        return total + third


def test_a_function_compiled_anew_is_the_same_but_for_the_edit() -> None:
    same = rewrite.rewritten(fit, lambda tree: None)
    assert (same(1), same(1, 5, third=3), same.__name__, same.__qualname__) == (6, 9, "fit", "fit")
    assert inspect.signature(same) == inspect.signature(fit)
    with pytest.raises(UnboundLocalError):
        same(1, third=4)
    bound = rewrite.rewritten(fit, rewrite.set_in_every_pass("total = 100"))
    assert (bound(1, third=4), bound(1)) == (104, 6)
    assert not rewrite.unbound_in_first_pass(fit, "total")
    assert rewrite.times_set(fit, "total") == 1
    assert rewrite.times_set(bound, "total") == 2
    again = rewrite.rewritten(bound, rewrite.set_in_every_pass("first = 10"))
    assert (again(1), again(1, third=4)) == (15, 104)


def test_errors_in_a_function_compiled_anew_name_its_line() -> None:
    bound = rewrite.rewritten(fit, rewrite.set_in_every_pass("pass"))
    with pytest.raises(UnboundLocalError) as caught:
        bound(1, third=4)
    line = inspect.getsource(fit).splitlines().index("        return total + third")
    assert caught.traceback[-1].lineno == fit.__code__.co_firstlineno + line - 1


class Child(SimpleNamespace):
    def __init__(self, **names: Any) -> None:
        super().__init__(**names)


def test_super_works_and_a_closure_is_refused() -> None:
    child = Child.__new__(Child)
    rewrite.rewritten(Child.__init__, lambda tree: None)(child, a=1)
    assert child.a == 1
    with pytest.raises(TypeError, match="closure"):
        rewrite.rewritten(_closure(), lambda tree: None)


def _closure() -> Any:
    value = 1

    def inner() -> int:
        return value

    return inner


# A user's own script


@pytest.mark.usefixtures("mmsa_run_cleanly")
@pytest.mark.parametrize(
    ("model", "dataset", "more"),
    [("mult", "mosi", {"learning_rate": 0.0}), ("mtfn", "sims", {"learning_rate": 0.0}),
     ("bert_mag", "mosi", {"learning_rate": 0.0}), ("tfr_net", "mosi", {"learning_rate_bert": 0.0,
                                                                        "learning_rate_other": 0.0}),
     ("mctn", "mosi", {"init_lr": 0.0})],
)
def test_mmsa_run_trains_them_after_register(
    model: str, dataset: str, more: dict[str, float], encoder: Path, tmp_path: Path
) -> None:
    import MMSA

    aligned = model in ("bert_mag", "mctn")
    path = write_features(tmp_path, dataset, aligned=aligned, samples=(32, 12, 16))
    config = {**small_settings(model), "early_stop": 1, **more}
    if model in ("bert_mag", "tfr_net"):
        config["pretrained"] = str(encoder)
    with active():
        MMSA.MMSA_run(model, dataset, config=config, seeds=[3], custom_feature=str(path), gpu_ids=[], num_workers=0,
                      verbose_level=0, model_save_dir=tmp_path / "models", res_save_dir=tmp_path / "results",
                      log_dir=tmp_path / "logs")
    assert model in (tmp_path / "results" / "normal" / f"{dataset}.csv").read_text()


def test_a_file_that_does_not_fit_is_refused_before_training(tmp_path: Path, encoder: Path, folders: Any) -> None:
    def train(model: str, path: Path, dataset: str = "mosi", **more: Any) -> None:
        job = runner.prepare(model, dataset, feature_file=path, seeds=[1], device="cpu", verbose=0, **folders, **more)
        runner.run(job)

    one_step, unaligned = write_features(tmp_path, "mosi", one_step=True), write_features(tmp_path, "mosi")
    with pytest.raises(InputError, match="'mult' convolves 5 steps of text, and the file has 1; use --set .*_l=1 or"):
        train("mult", one_step)
    with pytest.raises(InputError, match="step by step, and the file has text 25, audio 50, vision 75 steps"):
        train("mctn", unaligned)
    with pytest.raises(InputError, match="'mtfn' learns a label of each modality, and split 'train' has no key .*_A'"):
        train("mtfn", one_step, "sims")
    with pytest.raises(InputError, match="'tfn' normalises over the samples of a batch"):
        train("tfn", unaligned, overrides={"batch_size": 1})
    for model in ("misa", "mmim"):
        with pytest.raises(InputError, match=f"'{model}' compares the samples of a batch"):
            train(model, unaligned, overrides={"batch_size": 1}, pretrained=str(encoder))
