"""What is not the same for a row as for the reference: then it shows in the table.

What may change here: further things that two rows should have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..harness.classification import selects_on_test
from ..harness.job import Job

ON_TEST = "selected on test"


def text_source(settings: Mapping[str, Any]) -> str:
    """Where a model's text comes from, in words."""
    if settings.get("use_bert"):
        return f"token ids through {settings.get('pretrained')}"
    return "features of the file"


def marked(label: str, settings: Mapping[str, Mapping[str, Any]]) -> str:
    """The label of a row, settings by data set: with a mark where its checkpoint is chosen by the test split."""
    chosen = [data for data, own in settings.items() if selects_on_test(own)]
    if not chosen:
        return label
    return f"{label} ({ON_TEST}{'' if len(chosen) == len(settings) else ' of ' + ', '.join(chosen)})"


def differences(job: Job, reference: Job, name: str) -> list[str]:
    """In what a row's data and protocol differ from the reference row's, whose label is ``name``."""
    own, other = job.resolved.settings, reference.resolved.settings
    found = []
    if text_source(own) != text_source(other):
        found.append(f"text: {text_source(own)} ({name}: {text_source(other)})")
    if job.feature_file != reference.feature_file:
        found.append(f"feature file: {job.feature_file.name} ({name}: {reference.feature_file.name})")
    if bool(own.get("need_normalized")) != bool(other.get("need_normalized")):
        found.append("audio and vision averaged over time" if own.get("need_normalized") else
                     f"audio and vision not averaged over time, as they are for {name}")
    if own.get("data_missing"):
        found.append("hides part of the input (missing_rate)")
    if own.get("KeyEval", "Loss") != other.get("KeyEval", "Loss"):
        found.append(f"checkpoint chosen by {own.get('KeyEval', 'Loss')} ({name}: {other.get('KeyEval', 'Loss')})")
    if job.resolved.settings_of != reference.resolved.settings_of:
        found.append(f"settings made for {job.resolved.settings_of} ({name}: {reference.resolved.settings_of})")
    if job.mended:
        found.append("faults of MMSA's model repaired (--mended)")
    return found
