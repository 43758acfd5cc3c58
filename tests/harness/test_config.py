"""Settings: the order of the layers, MMSA's own look-up as the oracle, and every refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.catalogue import catalogue, mmsa_config
from mmsa_decalign.harness.config import parse_overrides, resolve
from mmsa_decalign.settings import Settings


def test_every_configuration_of_mmsa_resolves_as_in_mmsa() -> None:
    from MMSA import get_config_regression

    content = json.loads(mmsa_config("regression").read_text())
    pairs = [(m, d) for m in content if m != "datasetCommonParams" for d in content[m]["datasetParams"]]
    assert len(pairs) >= 43
    for model, dataset in pairs:
        theirs = dict(get_config_regression(model, dataset))
        ours = resolve(model, dataset)
        assert theirs.pop("featurePath").endswith(ours.feature_path)
        assert ours.settings == theirs, (model, dataset)


def test_later_layers_win(tmp_path: Path) -> None:
    shipped = resolve("tfn", "mosi").settings
    assert (shipped["early_stop"], shipped["batch_size"], shipped["learning_rate"]) == (8, 32, 0.001)
    flat = tmp_path / "flat.json"
    flat.write_text('{"early_stop": 3, "batch_size": 7}')
    settings = resolve("tfn", "mosi", config=flat, overrides={"batch_size": 9}).settings
    assert (settings["early_stop"], settings["batch_size"], settings["learning_rate"]) == (3, 9, 0.001)


def test_a_file_in_mmsas_schema_replaces_the_shipped_sections(tmp_path: Path) -> None:
    content = json.loads(mmsa_config("regression").read_text())
    content["datasetCommonParams"]["dataset_root_dir"] = "/somewhere"
    content["datasetCommonParams"]["mosi"]["unaligned"]["featurePath"] = "mine.pkl"
    content["tfn"]["datasetParams"]["mosi"] = {"batch_size": 5, "learning_rate": 1.0}
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(content))
    resolved = resolve("tfn", "mosi", config=file)
    assert (resolved.feature_path, resolved.config_root) == ("mine.pkl", "/somewhere")
    assert resolved.settings["batch_size"] == 5
    assert "hidden_dims" not in resolved.settings

    file.write_text(json.dumps({"lmf": content["lmf"]}))
    with pytest.raises(InputError, match="no section for model 'tfn'; it has: lmf"):
        resolve("tfn", "mosi", config=file)


def test_shipped_files_have_names() -> None:
    with pytest.raises(InputError, match="did you mean 'decalign'"):
        resolve("decalign", "mosi", config="decalin")
    assert resolve("decalign", "mosi", config="decalign").settings == resolve("decalign", "mosi").settings


def test_baselines_take_mosi_settings_for_synthetic_data() -> None:
    mosi, synthetic = resolve("lmf", "mosi").settings, resolve("lmf", "synthetic")
    assert synthetic.settings["rank"] == mosi["rank"]
    assert synthetic.settings["dataset_name"] == "synthetic"
    assert synthetic.feature_path.startswith("SYNTHETIC")


def test_need_data_aligned_chooses_the_file() -> None:
    assert "unaligned" in resolve("tfn", "mosi").feature_path
    assert "unaligned" not in resolve("tfn", "mosi", overrides={"need_data_aligned": True}).feature_path


@pytest.mark.parametrize(
    ("model", "dataset", "message"),
    [
        ("tfm", "mosi", "unknown model 'tfm'; did you mean 'tfn'"),
        ("tfn", "mosy", "unknown data set 'mosy'; did you mean 'mosi'"),
        ("mtfn", "mosi", "'mtfn' has no settings for data set 'mosi'; it has: sims"),
        ("mtfn", "synthetic", "'mtfn' has no settings for data set 'synthetic'; it has: sims"),
    ],
)
def test_unknown_names(model: str, dataset: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(model, dataset)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("batchsize=3", "unknown setting 'batchsize' for model 'tfn'; did you mean 'batch_size'"),
        ("batch_size=big", 'batch_size="big": expected a number such as 32'),
        ("batch_size=0", "batch_size=0: expected a whole number of at least 1"),
        ("early_stop=2.5", "early_stop=2.5: expected a whole number"),
        ("need_normalized=1", "need_normalized=1: expected true or false"),
        ("hidden_dims=3", "hidden_dims=3: expected a list"),
        ("pretrained=bert", "'tfn' has no text encoder"),
        ("featurePath=x", "unknown setting 'featurePath'"),
        ("=3", "expected key=value"),
        ("batch_size", "expected key=value"),
    ],
)
def test_settings_that_are_refused_for_a_baseline(pair: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve("tfn", "mosi", overrides=parse_overrides([pair]))


def test_decalign_refuses_by_its_own_rules() -> None:
    from mmsa_decalign.harness.runner import prepare

    with pytest.raises(InputError, match="did you mean 'num_heads'"):
        prepare("decalign", "synthetic", overrides={"num_head": 3})
    with pytest.raises(InputError, match="num_heads=7 does not divide d_model"):
        prepare("decalign", "synthetic", overrides={"num_heads": 7})


def test_override_values_are_json_where_they_can_be() -> None:
    assert parse_overrides(["a=1", "b=0.5", "c=true", "d=[1,2]", "e=text", "f=None", "g=False", "h=", "i=a=b"]) == {
        "a": 1, "b": 0.5, "c": True, "d": [1, 2], "e": "text", "f": None, "g": False, "h": "", "i": "a=b"}


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "expected a JSON object")])
def test_config_files_that_are_not_settings(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        resolve("tfn", "mosi", config=file)


def test_tuning_space_and_what_the_user_fixes() -> None:
    free = resolve("mfn", "mosi", tuning=True)
    assert set(free.space["NN1Config"]) == {"drop", "shapes"}
    fixed = resolve("mfn", "mosi", tuning=True, overrides={"batch_size": 11})
    assert list(fixed.space) == list(free.space)
    assert fixed.space["batch_size"] == [11]
    assert resolve("self_mm", "mosi", tuning=True).settings["a_lstm_layers"] == 1  # fixed by MMSA, not searched
    with pytest.raises(InputError, match="no tuning space for model 'mctn'"):
        resolve("mctn", "mosi", tuning=True)


def test_the_catalogue_says_where_things_come_from() -> None:
    known = catalogue()
    assert known.models["tfn"].source == "MMSA 2.2.1"
    assert known.models["decalign"].source.startswith("mmsa-decalign ")
    assert known.dataset_sources["synthetic"].startswith("mmsa-decalign ")
    assert known.models["mtfn"].datasets(known.datasets) == ["sims"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"datasetCommonParams": 5, "decalign": {}}', "datasetCommonParams is 5: expected a JSON object"),
        ('{"datasetCommonParams": {}, "decalign": 5}', "section 'decalign' is 5"),
        ('{"decalign": {"datasetParams": 3}}', "datasetParams of 'decalign' is 3"),
        ('{"datasetCommonParams": {"mosi": {}}, "decalign": {"datasetParams": {}}}', "neither 'aligned' nor"),
        ('{"datasetCommonParams": {"mosi": {"aligned": null}}, "decalign": {}}', "data set 'mosi', 'aligned' is null"),
        ('{"datasetCommonParams": {"mosi": {"aligned": {}, "unaligned": 5}}, "decalign": {}}', "'unaligned' is 5"),
        ('{"datasetCommonParams": {"dataset_root_dir": 5}, "decalign": {}}', "dataset_root_dir is 5: expected"),
        ('{"decalign": {"datasetParams": {"mosi": 5}}}', "datasetParams of 'decalign', 'mosi' is 5"),
        (b"\xff\xfe", "cannot be read as JSON text"),
    ],
)
def test_a_malformed_file_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        resolve("decalign", "mosi", config=file)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("debug", "message"),
    [
        ({"learning_rate": [0.1]}, "d_paras of 'decalign' is null: expected the names"),
        ({"d_paras": 5}, "d_paras of 'decalign' is 5"),
        ({"d_paras": [["clip"]], "clip": [1]}, "d_paras of 'decalign' is"),
        ({"d_paras": ["clip"]}, "d_paras of 'decalign' names 'clip'"),
        ({"d_paras": ["clip"], "clip": []}, "'clip' has no choice"),
        ({"d_paras": ["clip"], "clip": {"a": [1], "b": []}}, "'clip' has no choice"),
        ({"d_paras": ["clip"], "clip": {"a": 5}}, "'clip' has no choice"),
    ],
)
def test_a_malformed_tuning_space_is_named(tmp_path: Path, debug: dict[str, object], message: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"decalign": {"commonParams": {}, "datasetParams": {"mosi": {}}, "debugParams": debug}}))
    with pytest.raises(InputError) as caught:
        resolve("decalign", "mosi", config=file, tuning=True)
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


# d, heads, layers, kernel, reg, K, alpha, beta, contrastive, batch, rate, decay, clip, epochs, early stop, KeyEval: as
# the authors publish them.
PUBLISHED = {
    "mosi": (64, 8, 5, 1, 0.1, 7, 0.05, 0.07, 0.003, 32, 6e-5, 0.005, 0.6, 18, 6, "Loss"),
    "mosei": (64, 8, 4, 5, 0.1, 7, 0.005, 0.0, 0.001, 128, 5e-5, 0.005, 0.6, 16, 5, "Non0_acc_2"),
    "sims": (32, 8, 4, 5, 0.1, 7, 0.0175, 0.0525, 0.01, 24, 3.5e-5, 0.005, 0.5, 55, 11, "F1_score"),
    "iemocap": (48, 4, 4, 1, 0.1, 6, 0.05, 0.05, 0.0, 32, 1e-4, 0.005, 0.6, 50, 5, "Weighted_F1"),
}


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_the_settings_of_the_release_are_the_published_ones(dataset):
    s = Settings.from_args(resolve("decalign", dataset, config="release").settings)
    found = (s.d_model, s.num_heads, s.nlevels, *set(s.conv_kernel_sizes), s.ot_reg, s.num_prototypes, s.alpha, s.beta,
             s.ct_weight, s.batch_size, s.learning_rate, s.weight_decay, s.clip, s.num_epochs, s.early_stop, s.KeyEval)
    assert found == PUBLISHED[dataset]
    assert (s.ot_solver, s.use_sequence_mask, s.pooled_skip, s.head_width) == ("release", False, (), None)
    assert s.need_feature_standardized == (dataset in ("mosei", "sims"))
    assert s.task_loss == "mse"


def test_other_data_sets_differ_from_the_release_by_masks_and_solver_alone():
    for dataset in ("mosei", "sims", "iemocap"):
        ours, theirs = (resolve("decalign", dataset, config=config).settings for config in (None, "release"))
        assert {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)} == {
            "ot_solver", "use_sequence_mask", "skip_equal_projection"}


def test_the_settings_for_vectors_are_those_of_mosi_with_the_start_named_and_three_members():
    sequences, vectors = (resolve("decalign", "mosi", config=config).settings for config in (None, "utterance"))
    assert {key: (sequences.get(key), own) for key, own in vectors.items() if sequences.get(key) != own} == {
        "skip_start": ("auto", "zero"), "members": (None, 3)}
