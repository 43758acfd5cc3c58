"""The border: what a feature file may hold, and one clear error for everything else."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmsa_decalign.data.schema import Features, features_from_dict
from mmsa_decalign.errors import InputError

FILE = Path("features.pkl")


def check(data: Any) -> Features:
    return features_from_dict(data, FILE, "0" * 64)


def refused(data: Any) -> str:
    with pytest.raises(InputError) as caught:
        check(data)
    message = str(caught.value)
    assert str(FILE) in message
    assert len(message.splitlines()) <= 2
    return message


def test_a_valid_file_comes_back_as_records(layout):
    expected = {m: layout["valid"][m].copy() for m in ("text", "audio", "vision")}
    lengths = layout["train"]["audio_lengths"]
    features = check(layout)
    assert features.feature_dims == (6, 3, 2)
    assert features.seq_lens == (4, 4, 4)
    assert {name: len(split) for name, split in features.splits.items()} == {"train": 5, "valid": 3, "test": 4}
    valid = features.splits["valid"]
    for modality, array in expected.items():
        assert getattr(valid, modality).dtype == np.float32
        np.testing.assert_array_equal(getattr(valid, modality), array)
    assert valid.ids == ["valid$_$0", "valid$_$1", "valid$_$2"]
    assert valid.unimodal_labels == {}
    for modality in ("text", "audio", "vision"):
        assert features.splits["train"].lengths[modality].dtype == np.int64
        assert features.splits["train"].lengths[modality].tolist() == lengths


def test_records_are_frozen(layout):
    features = check(layout)
    with pytest.raises(AttributeError):
        features.sha256 = "1"
    with pytest.raises(AttributeError):
        features.splits["train"].labels = None


def test_float32_is_not_copied_and_float64_is_not_kept(layout):
    audio = layout["train"]["audio"]
    layout["train"]["text"] = layout["train"]["text"].astype(np.float64)
    text = layout["train"]["text"].copy()
    gone = weakref.ref(layout["train"]["text"])
    features = check(layout)
    assert features.splits["train"].audio is audio
    assert features.splits["train"].text.dtype == np.float32
    np.testing.assert_array_equal(features.splits["train"].text, text.astype(np.float32))
    assert gone() is None  # although `layout` is still here


def test_unknown_keys_are_ignored_and_unimodal_labels_read(layout):
    layout["generator"] = "anything"
    for split in ("train", "valid", "test"):
        layout[split]["annotations"] = ["Positive"]
        layout[split]["regression_labels_T"] = layout[split]["regression_labels"].astype(np.float64) / 2
    features = check(layout)
    assert list(features.splits["test"].unimodal_labels) == ["T"]
    np.testing.assert_array_equal(features.splits["test"].unimodal_labels["T"], features.splits["test"].labels / 2)
    assert features.splits["test"].unimodal_labels["T"].dtype == np.float32


def test_ids_and_sentences_become_strings(layout):
    layout["train"]["id"] = np.arange(5)
    layout["valid"]["id"] = np.array(["a", "b", "c"], dtype=object)
    layout["test"]["id"] = [b"a", b"b", b"c", b"d"]
    layout["test"]["raw_text"] = np.array(["w", "x", "y", "z"])
    features = check(layout)
    assert [features.splits[s].ids for s in ("train", "valid", "test")] == [list("01234"), list("abc"), list("abcd")]
    assert {type(i) for s in features.splits.values() for i in s.ids + s.raw_text} == {str}


def test_an_id_in_two_splits_is_no_matter_of_the_border(layout, caplog):
    layout["valid"]["id"] = list(layout["train"]["id"][:3])  # another split may have the same
    with caplog.at_level(logging.WARNING, "MMSA"):
        check(layout)
        assert not caplog.records


def test_a_split_with_the_same_id_twice_warns(layout, caplog):
    layout["train"]["id"] = ["a", "b", "a", "c", "b"]
    with caplog.at_level(logging.WARNING, "MMSA"):
        features = check(layout)
    assert len(features.splits["train"]) == 5
    (record,) = caplog.records
    assert f"{FILE}: split 'train' has 4 samples whose id another one has, too ('a', 'b')" in record.getMessage()


def test_a_file_without_labels_is_told_which_keys_are_labels(layout):
    for split in layout.values():
        split["regression_labels_T"] = split.pop("regression_labels")
        split["vision_lengths"] = split["audio_lengths"]
    message = refused(layout)
    assert "split 'train' has no key 'regression_labels' and no 'classification_labels', so that it has no" in message
    assert "did you mean" not in message
    layout["train"]["regresion_labels"] = layout["train"]["regression_labels_T"]
    assert "did you mean 'regresion_labels'?" in refused(layout)


def test_splits_that_share_one_dictionary(layout):
    layout["test"] = layout["valid"]
    features = check(layout)
    np.testing.assert_array_equal(features.splits["test"].audio, features.splits["valid"].audio)


def test_labels_may_be_a_column_and_a_list(layout):
    layout["train"]["regression_labels"] = layout["train"]["regression_labels"][:, None]
    layout["valid"]["regression_labels"] = [1, 0, -1]
    features = check(layout)
    assert features.splits["train"].labels.shape == (5,)
    assert features.splits["valid"].labels.tolist() == [1.0, 0.0, -1.0]


# Lengths


def drop_lengths(data):
    for split in data.values():
        for key in ("text_bert", "audio_lengths", "vision_lengths"):
            split.pop(key)


def test_without_lengths_only_trailing_zero_rows_are_padding(layout):
    drop_lengths(layout)
    audio = np.ones((3, 4, 3), dtype=np.float32)
    audio[0, 0] = 0  # padding in front counts as content
    audio[0, 3] = 0
    audio[1] = 0  # nothing at all: one step
    audio[2, 2, :2] = 0  # a row with one non-zero value is content
    audio[2, 3] = 0
    layout["valid"]["audio"] = audio
    assert check(layout).splits["valid"].lengths["audio"].tolist() == [3, 1, 3]


def test_text_length_is_the_end_of_the_attention_mask_even_where_features_go_on(layout):
    layout["valid"]["text"][:] = 1
    layout["valid"]["text_bert"][:, 1] = [[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert check(layout).splits["valid"].lengths["text"].tolist() == [2, 1, 3]


def test_tokens_of_another_length_do_not_say_how_long_text_is(layout):
    for split in layout.values():
        split["text_bert"] = np.ones((len(split["id"]), 3, 9), dtype=np.int64)
    layout["valid"]["text_lengths"] = np.array([4.0, 0.0, 2.0])
    features = check(layout)
    assert features.splits["valid"].lengths["text"].tolist() == [4, 1, 2]
    assert features.splits["train"].lengths["text"].tolist() == features.splits["train"].lengths["audio"].tolist()
    assert features.splits["train"].text_bert.shape == (5, 3, 9)


def test_lengths_beyond_the_array_are_clipped_for_one_step_and_refused_otherwise(layout):
    for split in layout.values():
        split["audio"] = split["audio"][:, :1]
    assert check({k: dict(v) for k, v in layout.items()}).splits["train"].lengths["audio"].tolist() == [1] * 5
    layout["test"]["vision_lengths"] = [4, 4, 5, 9]
    message = refused(layout)
    assert "'vision_lengths' says 5 steps for sample 'test$_$2', but the array has 4" in message


# Refusals


def set_key(split: str, key: str, value: Any) -> Callable[[dict], None]:
    def change(data):
        data[split][key] = value
    return change


def rename(split: str, key: str, new: str) -> Callable[[dict], None]:
    def change(data):
        data[split][new] = data[split].pop(key)
    return change


REFUSALS = {
    "no split": (lambda d: d.pop("valid"), ["no split 'valid'", "test, train"]),
    "misspelt split": (lambda d: d.update(vaild=d.pop("valid")), ["no split 'valid'", "did you mean 'vaild'?"]),
    "split is a list": (lambda d: d.update(test=[1]), ["split 'test' is a list", "dictionary"]),
    "split without content": (lambda d: d.update(test={}), ["split 'test' has no key 'text'", "it is empty"]),
    "misspelt key": (rename("test", "vision", "visoin"), ["split 'test' has no key 'vision'", "mean 'visoin'?"]),
    "key that breaks the line": (rename("test", "vision", "vi\rsion"), ["no key 'vision'", "'vi\\rsion'"]),
    "no labels": (lambda d: d["valid"].pop("regression_labels"), ["split 'valid' has no key 'regression_labels'"]),
    "two axes": (set_key("train", "audio", np.ones((5, 3), np.float32)), ["'audio' has shape (5, 3)", "x[:, None, :]"]),
    "four axes": (set_key("train", "audio", np.ones((5, 1, 1, 3))), ["'audio' has shape (5, 1, 1, 3)"]),
    "no steps": (set_key("train", "audio", np.ones((5, 0, 3))), ["'audio' has shape (5, 0, 3)", "no steps"]),
    "strings": (set_key("train", "text", np.full((5, 4, 6), "x")), ["'text' has dtype <U1"]),
    "complex": (set_key("train", "text", np.ones((5, 4, 6), complex)), ["'text' has dtype complex128"]),
    "objects": (set_key("train", "text", np.full((5, 4, 6), None)), ["'text' has dtype object"]),
    "ragged": (set_key("train", "text", [[[1.0]], [[1.0], [2.0]]]), ["'text' is a list of unequal rows", "Pad"]),
    "label matrix": (set_key("test", "regression_labels", np.ones((4, 2))), ["'regression_labels'", "(4, 2)"]),
    "token shape": (set_key("test", "text_bert", np.ones((4, 2, 9), int)), ["'text_bert' has shape (4, 2, 9)"]),
    "token fractions": (set_key("test", "text_bert", np.full((4, 3, 9), 0.5)), ["'text_bert' holds fractions"]),
    "token NaN": (set_key("test", "text_bert", np.full((4, 3, 9), np.nan)), ["'text_bert' holds fractions, NaN"]),
    "length fractions": (set_key("test", "audio_lengths", [1.5] * 4), ["'audio_lengths' holds fractions"]),
    "huge lengths": (set_key("test", "audio_lengths", [1e300] * 4), ["'audio_lengths' holds"]),
    "rows": (set_key("valid", "audio", np.ones((2, 4, 3))), ["split 'valid'", "text 3, audio 2, vision 3"]),
    "rows of labels": (set_key("valid", "regression_labels", [1.0]), ["split 'valid'", "regression_labels 1"]),
    "rows of lengths": (set_key("valid", "audio_lengths", [1]), ["split 'valid'", "audio_lengths 1"]),
    "rows of tokens": (set_key("valid", "text_bert", np.ones((2, 3, 4))), ["split 'valid'", "text_bert 2"]),
    "ids": (set_key("valid", "id", "abc"), ["key 'id' is a str"]),
    "no array": (set_key("valid", "raw_text", None), ["key 'raw_text' is a NoneType"]),
    "widths": (set_key("test", "vision", np.ones((4, 4, 9))), ["'vision' differs", "train 2, valid 2, test 9"]),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_each_fault_is_one_clear_error(layout, case):
    change, parts = REFUSALS[case]
    change(layout)
    message = refused(layout)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("thing", [[1, 2], None, "text", np.ones(3)])
def test_something_other_than_a_dictionary(thing):
    assert f"holds a {type(thing).__name__}, not a dictionary of the splits train, valid, test" in refused(thing)


def test_an_empty_split(layout):
    layout["valid"] = {key: value[:0] for key, value in layout["valid"].items()}
    message = refused(layout)
    assert "split 'valid' is empty" in message


NOT_FINITE = [(key, value) for key in ("text", "audio", "vision", "regression_labels")
              for value in (np.nan, np.inf, -np.inf) if (key, value) != ("audio", -np.inf)]  # that one is accepted


@pytest.mark.parametrize(("key", "value"), NOT_FINITE)
def test_values_that_are_not_finite(layout, key, value):
    layout["test"][key][1:3] = value
    count = layout["test"][key][1:3].size
    message = refused(layout)
    assert f"split 'test', key {key!r} holds NaN or Inf ({count} values), first in sample 'test$_$1'" in message


def test_what_float32_cannot_hold_is_refused(layout):
    layout["train"]["vision"] = np.full((5, 4, 2), 1e300)
    assert "key 'vision' holds NaN or Inf (40 values)" in refused(layout)


def test_minus_inf_in_audio_becomes_zero_with_one_warning(layout, caplog):
    layout["train"]["audio"][0, 0, :2] = -np.inf
    layout["test"]["audio"][3, 0, 0] = -np.inf
    layout["test"]["audio"].flags.writeable = False
    given = layout["test"]["audio"]
    with caplog.at_level(logging.WARNING, logger="MMSA"):
        features = check(layout)
    assert features.splits["train"].audio[0, 0, :2].tolist() == [0.0, 0.0]
    assert features.splits["test"].audio[3, 0, 0] == 0
    assert given[3, 0, 0] == -np.inf  # a read-only array is left alone
    assert np.isfinite(features.splits["test"].audio).all()
    assert [r.getMessage() for r in caplog.records] == [
        "features.pkl: values of -inf in 'audio' were set to 0 (train 2, test 1)"
    ]


def test_minus_inf_does_not_hide_a_nan(layout):
    layout["train"]["audio"][0] = -np.inf
    layout["train"]["audio"][4, 0, 0] = np.nan
    assert "split 'train', key 'audio' holds NaN or Inf (1 value), first in sample 'train$_$4'" in refused(layout)


def test_blocks_cover_every_row(layout, monkeypatch):
    monkeypatch.setattr("mmsa_decalign.data.arrays._BLOCK_VALUES", 13)  # one row of audio (12 values) at a time
    drop_lengths(layout)
    expected = [int((np.abs(x).sum(axis=1) > 0).sum()) for x in layout["train"]["audio"]]
    again = {name: dict(split) for name, split in layout.items()}
    assert check(again).splits["train"].lengths["audio"].tolist() == expected
    layout["train"]["audio"] = layout["train"]["audio"].copy()
    layout["train"]["audio"][2:, 0, 0] = np.nan
    assert "holds NaN or Inf (3 values), first in sample 'train$_$2'" in refused(layout)
