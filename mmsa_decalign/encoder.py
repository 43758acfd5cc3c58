"""The text encoder: token ids through a BERT-architecture model of the `transformers` library.

Lives here: loading by name or directory, with errors that say what to do, the call, and which layers learn.
transformers is imported when an encoder is built, not before: everybody else should not wait for it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import InputError


def load_encoder(pretrained: str, *, bert: bool = True) -> nn.Module:
    """The pretrained model `pretrained`: a local directory (no network is touched) or a name on the hub.

    Weights are read as safetensors, or as a pickle that may hold tensors alone; code that comes with them never runs.
    bert=False takes other architectures too: then the caller has to find out whether it is an encoder.

    Raises:
        InputError: when there is none, when it has no weights or not its own, or when it does not take token ids.
    """
    from transformers import AutoModel
    from transformers.utils import logging as hub_logging

    local = Path(pretrained).expanduser()
    name = str(local) if local.is_dir() else pretrained
    bars = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    try:
        model, info = AutoModel.from_pretrained(
            name, local_files_only=local.is_dir(), output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises OSError, ValueError, safetensors errors: all mean "no encoder"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"text encoder {pretrained!r} cannot be loaded: {reason}\n"
            "expected a Hugging Face name with network, or a directory with config.json and model.safetensors "
            "(--pretrained DIR); or set use_bert=false for precomputed text features"
        ) from error
    finally:
        if bars:
            hub_logging.enable_progress_bar()
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise InputError(
            f"text encoder {pretrained!r} lacks {len(missing)} of its weights, {missing[0]!r} first: "
            "expected a complete BERT-architecture checkpoint"
        )
    if bert and not (hasattr(model.config, "hidden_size") and hasattr(model.config, "type_vocab_size")):
        raise InputError(f"text encoder {pretrained!r} is a {model.config.model_type}: expected a BERT architecture")
    return model


class TextEncoder(nn.Module):
    """MMSA's text_bert (N, 3, L) to last hidden states (N, L, width); frozen, fine-tuned, or fine-tuned in part.

    Args:
        pretrained: as in `load_encoder`.
        finetune: False keeps all weights, and dropout, out of training.
        freeze_layers: of a fine-tuned encoder the embeddings and so many of its first layers stay as they are, without
            dropout; None: everything learns.
        checkpointing: the backward pass computes what is inside a layer again instead of keeping it: the same
            gradients for less memory and about a third more time.
    """

    def __init__(
        self, pretrained: str, finetune: bool, *, freeze_layers: int | None = None, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.model = load_encoder(pretrained)
        self.width: int = self.model.config.hidden_size
        self._frozen: tuple[nn.Module, ...] = ()  # no submodules of this one: a tuple is not registered
        if not finetune:
            self._frozen = (self.model,)
        elif freeze_layers is not None:
            self._frozen = _first_layers(self.model, freeze_layers, pretrained)
        for part in self._frozen:
            part.requires_grad_(False)
        self.finetune = finetune
        if finetune and checkpointing:
            _checkpoint_layers(self.model, pretrained)

    def train(self, mode: bool = True) -> TextEncoder:
        """What is frozen stays in evaluation mode: its dropout would be noise on constant features."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of `text`: token ids, attention mask, segment ids (any number type). Returns states and mask (N, L)."""
        if text.dim() != 3 or text.shape[1] != 3:
            raise InputError(
                f"text has shape {tuple(text.shape)}, expected token ids (N, 3, L) since use_bert is set: "
                "use a file with text_bert, or set use_bert=false"
            )
        ids, mask, segments = text.long().unbind(dim=1)
        config = self.model.config
        for what, rows, size in (("token", ids, config.vocab_size), ("segment", segments, config.type_vocab_size)):
            if int(rows.min()) < 0 or int(rows.max()) >= size:
                raise InputError(
                    f"{what} ids from {int(rows.min())} to {int(rows.max())} lie outside the text encoder's "
                    f"vocabulary of {size}: the file was made with another tokenizer"
                )
        if ids.shape[1] > config.max_position_embeddings:
            raise InputError(
                f"{ids.shape[1]} tokens a sample are more than the {config.max_position_embeddings} positions of the "
                "text encoder: use another encoder or shorter text_bert"
            )
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            states = self.model(input_ids=ids, attention_mask=mask, token_type_ids=segments).last_hidden_state
        valid = mask > 0
        valid[:, 0] = True  # a sample without tokens still has a step to average over
        return states, valid


def _first_layers(model: nn.Module, count: int, pretrained: str) -> tuple[nn.Module, ...]:
    """The embeddings and the first `count` layers of a BERT architecture."""
    embeddings, layers = getattr(model, "embeddings", None), getattr(getattr(model, "encoder", None), "layer", None)
    if embeddings is None or layers is None:  # ALBERT's layers, for one, are one layer again and again
        raise InputError(f"freeze_layers={count}: the layers of text encoder {pretrained!r}, a "
                         f"{model.config.model_type}, cannot be told apart; leave freeze_layers out")
    if not 0 <= count < len(layers):
        raise InputError(f"freeze_layers={count}: text encoder {pretrained!r} has {len(layers)} layers; expected 0 to "
                         f"{len(layers) - 1}, or use_finetune=false to freeze all of it")
    return (embeddings, *layers[:count])


def _checkpoint_layers(model: nn.Module, pretrained: str) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise InputError(f"gradient_checkpointing: text encoder {pretrained!r}, a {model.config.model_type}, has none; "
                         "set it to false")
    # the older name of the same thing goes with transformers 6 and warns before
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.config.use_cache = False  # of decoders, but it would warn
    # Only the reentrant kind needs inputs with a gradient; here they would make frozen layers keep and compute one.
    if getattr(model, "_require_grads_hook", None) is not None:
        model.disable_input_require_grads()
