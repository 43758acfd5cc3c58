"""Plugins that break one rule each, for the conformance checks; ``sound`` breaks none.

They are what a careful author might write: a small network on averages over the steps, and MMSA's contract of a
trainer. Each variant overrides the one method in which the fault lies.
"""

from __future__ import annotations

import json
import os
import pickle
import random

import torch
from torch import nn

from mmsa_decalign.harness.plugins import ModelPlugin


class Net(nn.Module):
    def __init__(self, args) -> None:
        super().__init__()
        text, audio, vision = args["feature_dims"]
        if args["use_bert"]:
            self.words = nn.Embedding(128, text)
        self.hidden = nn.Linear(text + audio + vision, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, text, audio, vision):
        if hasattr(self, "words"):
            text = self.words(text[:, 0].long())
        averages = torch.cat([x.mean(dim=1) for x in (text, audio, vision)], dim=1)
        return {"M": self.head(torch.tanh(self.hidden(averages)))}


class Trainer:
    def __init__(self, args) -> None:
        self.args = args

    def outputs(self, model, batch):
        return model(batch["text"], batch["audio"], batch["vision"])["M"]

    def step(self, optimizer):
        optimizer.step()

    def save(self, model):
        torch.save(model.state_dict(), self.args["model_save_path"])

    def do_train(self, model, dataloader, return_epoch_results=False):
        optimizer = torch.optim.Adam(list(parameters(model)), lr=self.args["learning_rate"])
        best = float("inf")
        for _ in range(40):
            model.train()
            for batch in dataloader["train"]:
                optimizer.zero_grad()
                (self.outputs(model, batch).reshape(-1, 1) - batch["labels"]["M"]).abs().mean().backward()
                self.step(optimizer)
            loss = self.do_test(model, dataloader["valid"])["Loss"]
            if loss < best:
                best = loss
                self.save(model)

    def do_test(self, model, dataloader, mode="VAL", return_sample_results=False):
        model.eval()
        with torch.no_grad():
            parts = [(self.outputs(model, batch), batch["labels"]["M"]) for batch in dataloader]
        predictions, labels = (torch.cat(part).reshape(-1, 1) for part in zip(*parts, strict=True))
        return {"Loss": float((predictions - labels).abs().mean())}


def parameters(model):
    """Also those of a layer that the model keeps in a list, where torch does not see them."""
    yield from model.parameters()
    for layer in getattr(model, "layers", ()):
        yield from layer.parameters()


class FixedSeed(Net):
    def __init__(self, args) -> None:
        torch.manual_seed(0)
        super().__init__(args)


class Unseeded(Net):
    def __init__(self, args) -> None:
        super().__init__(args)
        own = torch.Generator().manual_seed(random.SystemRandom().getrandbits(60))
        nn.init.normal_(self.hidden.weight, std=0.05, generator=own)


class Static(Trainer):
    def step(self, optimizer):
        pass


class BatchStatistics(Net):
    def forward(self, text, audio, vision):
        out = super().forward(text, audio, vision)["M"]
        return {"M": out if self.training else out - out.mean()}


class Squeezing(Trainer):
    def do_test(self, model, dataloader, mode="VAL", return_sample_results=False):
        model.eval()
        with torch.no_grad():
            parts = [(self.outputs(model, batch).squeeze(), batch["labels"]["M"].view(-1)) for batch in dataloader]
        predictions, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return {"Loss": float((predictions - labels).abs().mean())}


class Unsaving(Trainer):
    def save(self, model):
        pass


class SavesFirst(Trainer):
    def save(self, model):
        if not os.path.exists(self.args["model_save_path"]):
            super().save(model)


class OtherHistory(Trainer):
    def do_train(self, model, dataloader, return_epoch_results=False):
        self.history = [0.3, 0.2]
        super().do_train(model, dataloader)


class Peeking(Trainer):
    def do_train(self, model, dataloader, return_epoch_results=False):
        self.do_test(model, dataloader["test"])
        super().do_train(model, dataloader)


class Flat(Net):
    """One number a sample, but not in a column."""

    def forward(self, text, audio, vision):
        return {"M": super().forward(text, audio, vision)["M"].squeeze(1)}


class NotFinite(Net):
    def forward(self, text, audio, vision):
        out = super().forward(text, audio, vision)["M"]
        return {"M": out if self.training else out / 0}


class Counting(Net):
    """Its buffer goes on counting in evaluation."""

    def __init__(self, args) -> None:
        super().__init__(args)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, text, audio, vision):
        self.calls += 1
        return super().forward(text, audio, vision)


class AtMostABatch(Net):
    def __init__(self, args) -> None:
        super().__init__(args)
        self.room = args["batch_size"]

    def forward(self, text, audio, vision):
        if self.training and len(text) > self.room:
            raise ValueError(f"no room for {len(text)} samples")
        return super().forward(text, audio, vision)


class ReadsTokensItself(Trainer):
    def do_train(self, model, dataloader, return_epoch_results=False):
        with open(self.args["custom_feature"], "rb") as file:
            pickle.load(file)["train"]["text_bert"]
        super().do_train(model, dataloader)


class Unregistered(Net):
    def __init__(self, args) -> None:
        super().__init__(args)
        self.layers = [nn.Linear(8, 1)]

    def forward(self, text, audio, vision):
        averages = torch.cat([x.mean(dim=1) for x in (text, audio, vision)], dim=1)
        hidden = torch.tanh(self.hidden(averages))
        return {"M": self.head(hidden) + self.layers[0](hidden)}


class Idle(Net):
    """With a layer that has no part in the output."""

    def __init__(self, args) -> None:
        super().__init__(args)
        self.spare = nn.Linear(3, 3)


class Crashing(Trainer):
    def do_train(self, model, dataloader, return_epoch_results=False):
        raise RuntimeError("shapes do not match\nand more that nobody reads")


class Leaving(Trainer):
    def do_train(self, model, dataloader, return_epoch_results=False):
        raise SystemExit(0)


class Text:
    """Stands for a file in a package."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.text


def plugin(name: str, model: type = Net, trainer: type = Trainer, **settings) -> ModelPlugin:
    common = {"need_data_aligned": False, "batch_size": 16, "learning_rate": 0.01, "use_bert": False, **settings}
    section = {"commonParams": common, "datasetParams": {"mosi": {}, "sims": {}}}
    return ModelPlugin(name, model, trainer, Text(json.dumps({name: section})), "breaks one rule")


sound = plugin("sound")
slow = plugin("slow", learning_rate=1e-6)
reads_tokens = plugin("reads_tokens", use_bert=True, pretrained="")
fixed_seed = plugin("fixed_seed", FixedSeed)
unseeded = plugin("unseeded", Unseeded)
static = plugin("static", trainer=Static)
batch_statistics = plugin("batch_statistics", BatchStatistics)
squeezing = plugin("squeezing", trainer=Squeezing)
unsaving = plugin("unsaving", trainer=Unsaving)
saves_first = plugin("saves_first", trainer=SavesFirst, learning_rate=0.002)
other_history = plugin("other_history", trainer=OtherHistory)
peeking = plugin("peeking", trainer=Peeking)
flat = plugin("flat", Flat)
not_finite = plugin("not_finite", NotFinite)
counting = plugin("counting", Counting)
at_most_a_batch = plugin("at_most_a_batch", AtMostABatch)
reads_tokens_itself = plugin("reads_tokens_itself", trainer=ReadsTokensItself)
unregistered = plugin("unregistered", Unregistered)
idle = plugin("idle", Idle)
crashing = plugin("crashing", trainer=Crashing)
leaving = plugin("leaving", trainer=Leaving)
