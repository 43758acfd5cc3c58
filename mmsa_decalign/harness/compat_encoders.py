"""What keeps MMSA's models from reading token ids through the text encoder that their settings name, as patches.

MMSA has 768 and the names of two encoders written into several models, and goes by transformers 4. What may change
here: further models that read token ids. Where an encoder lies and what is asked of it is known in encoders.py.
"""

from __future__ import annotations

import inspect
import logging
import math
import re
import warnings
from typing import Any

from ..errors import InputError
from .encoders import check_kind, encoder_config, encoder_folder, load_tokenizer, quiet_transformers
from .patching import Patch, Undo, add, mmsa_module, replace, together
from .rewrite import rewritten, source_text, with_argument

LOGGER = logging.getLogger("MMSA")


def _encoders_ask_the_hub() -> bool:
    owner = mmsa_module("models.subNets.BertTextEncoder").BertTextEncoder
    return "from_pretrained" in owner.__init__.__code__.co_names


def _encoders_by_folder() -> Undo:
    owner = mmsa_module("models.subNets.BertTextEncoder").BertTextEncoder

    def __init__(
        self: Any, use_finetune: bool = False, transformers: str = "bert", pretrained: str = "bert-base-uncased"
    ) -> None:
        from torch import nn

        from ..encoder import load_encoder

        nn.Module.__init__(self)
        folder = encoder_folder(pretrained)
        check_kind(pretrained, encoder_config(str(folder)) or {}, transformers)
        self.tokenizer = load_tokenizer(folder)
        with quiet_transformers():
            self.model = load_encoder(str(folder)).float()  # a checkpoint may be saved in half precision
        self.use_finetune = use_finetune

    return replace(owner, "__init__", __init__)


def _loader_knows_one_width() -> bool:
    return "= 768" in inspect.getsource(mmsa_module("data_loader"))


def _settings_follow_the_encoder() -> Undo:
    owner = mmsa_module("models.AMIO").AMIO
    original = owner.__init__

    def __init__(self: Any, args: Any) -> None:
        fit_settings(args)
        original(self, args)

    return replace(owner, "__init__", __init__)


def fit_settings(args: Any) -> None:
    """Write into ``args`` what follows from data and encoder, where MMSA has the numbers of its own files."""
    name = args["model_name"]
    if args.get("use_bert") and args.get("pretrained"):
        config = encoder_config(str(encoder_folder(args["pretrained"]))) or {}
        args["feature_dims"] = [int(config["hidden_size"]), *args["feature_dims"][1:]]
    if name == "self_mm":
        args["text_out"] = args["feature_dims"][0]
    if name == "mctn":
        args["output_dim"] = max(args["feature_dims"])
    if name == "mult" and "use_finetune" not in args:
        args["use_finetune"] = args.get("use_bert_finetune", False)
    if name == "tfr_net":
        common = math.gcd(*(int(length) for length in args["seq_lens"]))
        wanted = args["num_temporal_head"]
        if common % wanted:
            heads = max(heads for heads in range(1, min(wanted, common) + 1) if common % heads == 0)
            LOGGER.warning("num_temporal_head=%d does not divide the steps %s of text, audio and vision: %d is used",
                           wanted, ", ".join(map(str, args["seq_lens"])), heads)
            args["num_temporal_head"] = heads


def _misa_is_768_wide() -> bool:
    return "in_features=768" in source_text(mmsa_module("models.singleTask.MISA").MISA.__init__)


def _misa_as_wide_as_its_encoder() -> Undo:
    from torch import nn

    owner = mmsa_module("models.singleTask.MISA").MISA
    original, extract = owner.__init__, owner.extract_features

    def __init__(self: Any, config: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "enable_nested_tensor", UserWarning)  # a matter of speed
            original(self, config)
        width = self.bertmodel.model.config.hidden_size
        if self.project_t.project_t.in_features != width:
            self.project_t.project_t = nn.Linear(width, config.hidden_size)

    def extract_features(self: Any, sequence: Any, lengths: Any, *args: Any) -> Any:
        # MISA reads audio and vision as far as there are tokens
        return extract(self, sequence, lengths.clamp(max=sequence.shape[1]), *args)

    return together([replace(owner, "__init__", __init__), replace(owner, "extract_features", extract_features)])


def _tfr_net_names_no_encoder() -> bool:
    source = source_text(mmsa_module("models.missingTask.TFR_NET.model").TFR_NET.__init__)
    return "BertTextEncoder(" in source and "args.pretrained" not in source


def _tfr_net_with_the_named_encoder() -> Undo:
    owner = mmsa_module("models.missingTask.TFR_NET.model").TFR_NET
    return replace(owner, "__init__",
                   rewritten(owner.__init__, with_argument("BertTextEncoder", "pretrained", "args.pretrained")))


def _bert_mag_knows_two_names() -> bool:
    return "args.pretrained" not in source_text(mmsa_module("models.singleTask.BERT_MAG").BERT_MAG.__init__)


def _bert_mag_with_the_named_encoder() -> Undo:
    from torch import nn

    module = mmsa_module("models.singleTask.BERT_MAG")

    def __init__(self: Any, args: Any) -> None:
        nn.Module.__init__(self)
        folder = encoder_folder(args["pretrained"])
        check_kind(args["pretrained"], encoder_config(str(folder)) or {}, "bert", fixed=True)
        with quiet_transformers():
            self.model, info = module.MAG_BertForSequenceClassification.from_pretrained(
                str(folder), args=args, num_labels=1, local_files_only=True, output_loading_info=True)
        self.model.float()
        lacking = sorted(key for key in info["missing_keys"] if not re.search(r"MAG|classifier|pooler", key))
        if lacking:
            raise InputError(f"text encoder {args['pretrained']} lacks {len(lacking)} of its weights, {lacking[0]!r} "
                             "first: expected a complete BERT checkpoint")

    return replace(module.BERT_MAG, "__init__", __init__)


def _transformers_5_lacks_helpers() -> bool:
    from transformers import PreTrainedModel

    return not hasattr(PreTrainedModel, "get_head_mask") or not hasattr(PreTrainedModel, "get_extended_attention_mask")


def _bert_mag_with_its_own_helpers() -> Undo:
    import torch

    module = mmsa_module("models.singleTask.BERT_MAG")
    bert, classifier = module.MAG_BertModel, module.MAG_BertForSequenceClassification
    inherited = bert.init_weights

    def init_weights(self: Any) -> None:
        # transformers 5 initialises in post_init, which itself comes back here
        (inherited if hasattr(self, "all_tied_weights_keys") else type(self).post_init)(self)

    def get_head_mask(self: Any, head_mask: Any, num_hidden_layers: int) -> None:
        """No head is masked: MMSA asks for none."""

    def get_extended_attention_mask(self: Any, attention_mask: Any, *args: Any) -> Any:
        """(N, L) of ones and zeros as what is added to attention scores, (N, 1, 1, L): 0 and the lowest number."""
        return (1 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min

    undos = [add(owner, "init_weights", init_weights) for owner in (bert, classifier)]
    undos += [add(bert, "get_head_mask", get_head_mask),
              add(bert, "get_extended_attention_mask", get_extended_attention_mask)]
    return together(undos)


ENCODER_PATCHES = (
    Patch(
        "encoder_by_folder",
        _encoders_ask_the_hub,
        _encoders_by_folder,
        "MMSA/models/subNets/BertTextEncoder.py (2.2.1): asks the hub for half a minute where there is no network, and "
        "takes the five-word tokenizer that transformers 5 makes up where a folder has none",
    ),
    Patch(
        "settings_follow_the_encoder",
        _loader_knows_one_width,
        _settings_follow_the_encoder,
        "MMSA/data_loader.py and config_regression.json (2.2.1): feature_dims[0] = 768 for every text encoder, "
        "text_out and output_dim 768, 25 heads over the time steps in tfr_net, whatever encoder and file are",
    ),
    Patch(
        "misa_width",
        _misa_is_768_wide,
        _misa_as_wide_as_its_encoder,
        "MMSA/models/singleTask/MISA.py (2.2.1): nn.Linear(in_features=768), and lengths of tokens to pack audio and "
        "vision with, which may have fewer steps",
    ),
    Patch(
        "tfr_net_encoder",
        _tfr_net_names_no_encoder,
        _tfr_net_with_the_named_encoder,
        "MMSA/models/missingTask/TFR_NET/model.py (2.2.1): BertTextEncoder without pretrained, so that it is "
        "bert-base-uncased whatever the settings say, for Chinese too",
    ),
    Patch(
        "bert_mag_encoder",
        _bert_mag_knows_two_names,
        _bert_mag_with_the_named_encoder,
        "MMSA/models/singleTask/BERT_MAG.py (2.2.1): bert-base-uncased or, by language, bert-base-chinese, whatever "
        "the settings say",
    ),
    Patch(
        "bert_mag_transformers_5",
        _transformers_5_lacks_helpers,
        _bert_mag_with_its_own_helpers,
        "MMSA/models/singleTask/BERT_MAG.py (2.2.1): init_weights() where transformers 5 wants post_init(), and "
        "get_head_mask and get_extended_attention_mask, which it took away",
    ),
)
