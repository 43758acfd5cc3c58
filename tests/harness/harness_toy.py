"""A third party's plugin for the tests: a linear model whose trainer misbehaves in the way that its settings name."""

from __future__ import annotations

import torch
from torch import nn

from mmsa_decalign.harness.registry import ModelPlugin

CONFIG = """{
  "toy": {
    "commonParams": {"need_data_aligned": false, "batch_size": 16, "learning_rate": 0.01, "epochs": 3, "early_stop": 8,
                     "behaviour": "well", "bad_seed_number": 0},
    "datasetParams": {"mosi": {"width": 1}, "sims": {"width": 2}},
    "debugParams": {"d_paras": ["learning_rate", "shape"], "learning_rate": [0.001, 0.01],
                    "shape": {"a": [1], "b": [2, 3]}}
  }
}"""


class Text:
    """Stands for a file in a package."""

    def __init__(self, text: str) -> None:
        self.text = text

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.text


class Toy(nn.Module):
    def __init__(self, args) -> None:
        super().__init__()
        self.head = nn.Linear(sum(args["feature_dims"]), 1)

    def forward(self, text, audio, vision):
        return {"M": self.head(torch.cat([x.mean(dim=1) for x in (text, audio, vision)], dim=1))}


class ToyTrainer:
    def __init__(self, args) -> None:
        from MMSA.utils import MetricsTop

        self.args = args
        self.metrics = MetricsTop("regression").getMetics(args["dataset_name"])

    def do_train(self, model, dataloader, return_epoch_results=False):
        behaviour = self.args["behaviour"]
        if self.args["bad_seed_number"] in (0, self.args["cur_seed"]):
            if behaviour == "interrupt":
                raise KeyboardInterrupt
            if behaviour == "crash":
                raise RuntimeError("shapes do not match")
            if behaviour == "no checkpoint":
                return
            if behaviour == "reads test":
                self.do_test(model, dataloader["test"])
        optimizer = torch.optim.Adam(model.parameters(), lr=self.args["learning_rate"])
        best = float("inf")
        for _ in range(self.args["epochs"]):
            model.train()
            for batch in dataloader["train"]:
                optimizer.zero_grad()
                loss = (model(batch["text"], batch["audio"], batch["vision"])["M"] - batch["labels"]["M"]).abs().mean()
                (loss * float("nan") if behaviour == "nan" else loss).backward()
                optimizer.step()
            loss = self.do_test(model, dataloader["valid"])["Loss"]
            if loss < best:
                best = loss
                torch.save(model.state_dict(), self.args["model_save_path"])

    def do_test(self, model, dataloader, mode="VAL", return_sample_results=False):
        model.eval()
        with torch.no_grad():
            parts = [(model(b["text"], b["audio"], b["vision"])["M"], b["labels"]["M"]) for b in dataloader]
        predictions, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return {**self.metrics(predictions, labels), "Loss": float((predictions - labels).abs().mean())}


plugin = ModelPlugin("toy", Toy, ToyTrainer, Text(CONFIG), "a linear model", needs=("patience",))
misnamed = ModelPlugin("Toy", Toy, ToyTrainer, Text(CONFIG), "not lower case")
without_section = ModelPlugin("other", Toy, ToyTrainer, Text("{}"), "no settings")
not_a_plugin = 3
