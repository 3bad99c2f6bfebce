"""A self-speculative model as a model of the `transformers` library.

    import selfspec.hub.pretrained                       # registers the two classes
    model = AutoModelForMaskedLM.from_pretrained(folder)
    out = model.generate(input_ids, return_dict_in_generate=True)

Mask tokens inside `input_ids` are what is generated, in place. The wrapper is thin: `model.ssmd` is
the model itself, and this file the only one that imports the library on import.

A saved folder also holds `modeling_ssmd.py`, two imports of this file, to which `auto_map` in its
config points: with `trust_remote_code=True` the library finds the classes without the import above.
The package must be installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from selfspec import calibration
from selfspec.description import describe
from selfspec.files import write_bytes
from selfspec.generation import draw
from selfspec.hub.reunite import Reunion
from selfspec.lengths import Lengths
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.noise import row_seeds
from selfspec.orders import Order
from selfspec.sampling import Sampler

__all__ = ["SSMDConfig", "SSMDForMaskedLM", "SSMDOutput"]

hf: Any = transformers
CODE = b'''"""Where `trust_remote_code=True` finds the classes: in the package `selfspec`."""

from selfspec.hub.pretrained import SSMDConfig as SSMDConfig
from selfspec.hub.pretrained import SSMDForMaskedLM as SSMDForMaskedLM
'''
AUTO_MAP = {
    "AutoConfig": "modeling_ssmd.SSMDConfig",
    "AutoModelForMaskedLM": "modeling_ssmd.SSMDForMaskedLM",
}
CHOOSING = ("nfe", "quality", "window", "rounds")
DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "seed": 0, "return_dict_in_generate": False}


class SSMDConfig(hf.PreTrainedConfig):
    """Shape of trunk and head, and the calibration table.

    Args:
        trunk: fields of `TrunkConfig`, or what `HubTrunk.to_config(whole=True)` says.
        head: fields of `HeadConfig`; None for a model without a head.
        calibration: rows, see `selfspec.calibration`.
        lengths: what `Lengths.to_config` says; None where all sequences are of the model's length.
        mask_token_id, **options: for the library.
        vocab_size: tokens that can be read, the mask among them.
    """

    model_type = "ssmd"

    def __init__(
        self,
        trunk: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        calibration: list[dict[str, Any]] | None = None,
        lengths: dict[str, Any] | None = None,
        mask_token_id: int | None = None,
        vocab_size: int | None = None,
        **options: Any,
    ):
        self.trunk = trunk
        self.head = head
        self.calibration = calibration or []
        self.lengths = lengths
        self.mask_token_id = mask_token_id
        self.vocab_size = vocab_size
        # Whether a trunk's table is tied is its own config's matter.
        super().__init__(**{"auto_map": AUTO_MAP, **options, "tie_word_embeddings": False})

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """As the library does, with the file that `auto_map` names."""
        super().save_pretrained(save_directory, *arguments, **options)
        write_bytes(Path(save_directory, "modeling_ssmd.py"), CODE)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Nothing: the library would copy this file beside every model that is saved."""


@dataclass
class SSMDOutput(hf.utils.ModelOutput):
    """What `generate` returns with `return_dict_in_generate=True`.

    Attributes:
        sequences: (B, L) int64, in place of the masks what was generated.
        tokens_per_forward: (B,) generated tokens over `num_forward_passes`; nan where there were
            none.
        num_forward_passes: (B,) function evaluations, of all blocks each (`interfaces.py`): a pass
            of the trunk or of the head counts by its share of the blocks.
        acceptance_rate: share of the verified drafts that were accepted; 1 for plain sampling.
    """

    sequences: Tensor | None = None
    tokens_per_forward: Tensor | None = None
    num_forward_passes: Tensor | None = None
    acceptance_rate: float | None = None


class SSMDForMaskedLM(hf.PreTrainedModel, hf.GenerationMixin):
    """The wrapper; `ssmd` is the model.

    `generation_config` may set `nfe`, `quality`, `window` (a whole number), `rounds`,
    `temperature`, `top_p`, `seed` and `return_dict_in_generate`, for where `generate` is not told.
    """

    config_class = SSMDConfig
    base_model_prefix = "ssmd"
    main_input_name = "input_ids"

    def __init__(self, config: SSMDConfig):
        super().__init__(config)
        self.ssmd = _built(config)
        # Made anew: one made from a model's config forgets our settings when it is loaded again.
        # One that does not sample cannot be saved with a temperature.
        self.generation_config = hf.GenerationConfig(do_sample=True)
        self.post_init()

    @classmethod
    def of(cls, model: SSMD) -> SSMDForMaskedLM:
        """The wrapper of a model, which is not copied.

        Raises:
            ValueError: its trunk cannot be described.
        """
        described = describe(model, merge=True)
        shape = {name: described[name] for name in ("trunk", "head", "calibration", "lengths")}
        ids = max(model.vocab_size, model.mask_id + 1)
        config = SSMDConfig(**shape, mask_token_id=model.mask_id, vocab_size=ids)
        with torch.device("meta"):
            wrapper = cls(config)
        wrapper.ssmd = model
        wrapper.post_init()  # what is tied is found in the model's own modules
        return wrapper.eval()

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing, as in `SSMDConfig`."""

    def _init_weights(self, module: nn.Module) -> None:
        """Only what is not in a checkpoint; the library's own trunks fill themselves."""
        if isinstance(module, Trunk | CausalHead):
            module.reset_parameters()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """What is tied inside the trunk: the library looks for it in direct children only."""
        inner = getattr(self.ssmd.trunk, "model", None)
        tied = getattr(inner, "all_tied_weights_keys", {})
        path = "ssmd.trunk.model."
        return {path + target: path + source for target, source in tied.items()}

    def get_input_embeddings(self) -> nn.Module:
        """The trunk's table."""
        trunk = self.ssmd.trunk
        return trunk.embedding if isinstance(trunk, Trunk) else trunk.model.get_input_embeddings()  # type: ignore[union-attr,return-value]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """Draft logits (B, L, V) for tokens (B, L); pads where `attention_mask` is 0."""
        pad = None if attention_mask is None else attention_mask == 0
        logits = self.ssmd.draft(self.ssmd.encode(input_ids, pad))
        return hf.modeling_outputs.MaskedLMOutput(logits=logits)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        *,
        order: Order | None = None,
        sampler: Sampler | None = None,
        streamer: Any = None,
        **settings: Any,
    ) -> Tensor | SSMDOutput:
        """Fill the mask tokens of `input_ids`.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 0 at pads.
            generation_config: what `settings` leave open; the model's own by default. Its `nfe`,
                `quality`, `window` and `rounds` count only where all of them are left open.
            order, sampler: as in `selfspec.generate`.
            streamer: its `put_draft` is shown the sequences (B, L) after every pass, where it has
                one, and its `put` the result; `TextDiffusionStreamer` takes one row.
            **settings: `nfe`, `quality`, `window`, `rounds`, `temperature`, `top_p` and `seed`, as
                in `selfspec.generate`; `return_dict_in_generate` to return an `SSMDOutput`, not the
                sequences alone.

        Raises:
            ValueError: nothing is masked, an unknown setting, or as `selfspec.generate`.
        """
        pad = torch.zeros_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            pad = attention_mask == 0
        masked = ((input_ids == self.ssmd.mask_id) & ~pad).sum(1)
        if not bool(masked.any()):
            raise ValueError(f"`input_ids` must hold the mask token {self.ssmd.mask_id} where "
                             "tokens are to be generated, got none")  # fmt: skip
        stated = self.generation_config if generation_config is None else generation_config
        chosen, others = _filled(settings, stated, sampler is None)
        if sampler is None:
            law = {name: others[name] for name in ("temperature", "top_p")}
            sampler = calibration.choose(self.ssmd, order=order, **chosen, **law)
        seeds = row_seeds(others["seed"], len(input_ids), input_ids.device)
        if show := getattr(streamer, "put_draft", None):
            samples = sampler.sample(input_ids, seeds, pad, watch=show)
        else:
            samples = draw(sampler, input_ids, seeds, pad, batch_size=len(input_ids))
        if streamer is not None:
            streamer.put(samples.tokens.cpu())
            streamer.end()
        if not others["return_dict_in_generate"]:
            return samples.tokens
        return SSMDOutput(
            sequences=samples.tokens,
            tokens_per_forward=masked / samples.nfe,
            num_forward_passes=samples.nfe,
            acceptance_rate=samples.acceptance,
        )


def _filled(
    given: dict[str, Any], stated: Any, choose: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What chooses a sampler, and the other settings: given, else stated, else by default."""
    if unknown := sorted(given.keys() - {*CHOOSING, *DEFAULTS}):
        raise ValueError(f"`settings` must be of {', '.join((*CHOOSING, *DEFAULTS))}, "
                         f"got {unknown[0]!r}")  # fmt: skip
    chosen = {name: given.get(name) for name in CHOOSING}
    if not choose and any(value is not None for value in chosen.values()):
        raise ValueError("`sampler` brings its own settings: leave `nfe`, `quality`, `window` and "
                         "`rounds` out")  # fmt: skip
    if all(value is None for value in chosen.values()):
        chosen = {name: getattr(stated, name, None) for name in CHOOSING}
    others = {}
    for name, default in DEFAULTS.items():
        values = (given.get(name), getattr(stated, name, None), default)
        others[name] = next(value for value in values if value is not None)
    return chosen, others


def _built(config: SSMDConfig) -> SSMD:
    """The model of a config, with weights that are still to come."""
    if not config.trunk:
        raise ValueError("`config.trunk` must describe a trunk, got none")
    if config.trunk.get("kind") == "hub":
        trunk, _ = Reunion()({"trunk": config.trunk}, Path("config"))
    else:
        trunk = Trunk(TrunkConfig(**config.trunk))
    head = None if config.head is None else CausalHead(HeadConfig(**config.head), trunk.width)  # type: ignore[arg-type]
    model = SSMD(trunk, head)
    model.calibration = config.calibration
    model.lengths = None if config.lengths is None else Lengths.from_config(config.lengths)
    return model


hf.AutoConfig.register(SSMDConfig.model_type, SSMDConfig)
hf.AutoModelForMaskedLM.register(SSMDConfig, SSMDForMaskedLM)
