"""A self-speculative model as a model of the `transformers` library.

    import selfspec.hub.pretrained                       # registers the two classes
    model = AutoModelForMaskedLM.from_pretrained(folder)
    out = model.generate(input_ids, return_dict_in_generate=True)

Mask tokens inside `input_ids` are what is generated, in place. The wrapper is thin: `model.ssmd` is
the model itself, and this file the only one that imports the library on import.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from selfspec import calibration
from selfspec.hub.reunite import Reunion
from selfspec.hub.trunk import HubTrunk
from selfspec.model import SSMD
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.orders import Order
from selfspec.sampling import Sampler
from selfspec.schedules import Window

__all__ = ["SSMDConfig", "SSMDForMaskedLM", "SSMDOutput"]

hf: Any = transformers


class SSMDConfig(hf.PreTrainedConfig):
    """Shape of trunk and head, and the calibration table.

    Args:
        trunk: fields of `TrunkConfig`, or what `HubTrunk.to_config(whole=True)` says.
        head: fields of `HeadConfig`; None for a model without a head.
        calibration: rows, see `selfspec.calibration`.
        mask_token_id, vocab_size, **options: for the library.
    """

    model_type = "ssmd"

    def __init__(
        self,
        trunk: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
        calibration: list[dict[str, Any]] | None = None,
        mask_token_id: int | None = None,
        vocab_size: int | None = None,
        **options: Any,
    ):
        self.trunk = trunk
        self.head = head
        self.calibration = calibration or []
        self.mask_token_id = mask_token_id
        self.vocab_size = vocab_size
        # Whether a trunk's table is tied is its own config's matter.
        super().__init__(**{**options, "tie_word_embeddings": False})


@dataclass
class SSMDOutput(hf.utils.ModelOutput):
    """What `generate` returns with `return_dict_in_generate=True`.

    Attributes:
        sequences: (B, L) int64, in place of the masks what was generated.
        tokens_per_forward: (B,) generated tokens over `num_forward_passes`; nan where there were
            none.
        num_forward_passes: (B,) function evaluations, of all blocks each (`interfaces.py`): a pass
            of the trunk or of the head counts by its share of the blocks.
        acceptance_rate: share of the verified drafts that were accepted.
    """

    sequences: Tensor | None = None
    tokens_per_forward: Tensor | None = None
    num_forward_passes: Tensor | None = None
    acceptance_rate: float | None = None


class SSMDForMaskedLM(hf.PreTrainedModel):
    """The wrapper; `ssmd` is the model."""

    config_class = SSMDConfig
    base_model_prefix = "ssmd"
    main_input_name = "input_ids"

    def __init__(self, config: SSMDConfig):
        super().__init__(config)
        self.ssmd = _built(config)
        self.post_init()

    @classmethod
    def of(cls, model: SSMD) -> SSMDForMaskedLM:
        """The wrapper of a model, which is not copied.

        Raises:
            ValueError: its trunk cannot be described.
        """
        trunk = model.trunk
        if isinstance(trunk, Trunk):
            described = asdict(trunk.config)
        elif isinstance(trunk, HubTrunk):
            described = trunk.to_config(whole=True)
        else:
            raise ValueError(f"`model` must have our own trunk or one of the Hub, "
                             f"got {type(trunk).__name__}")  # fmt: skip
        config = SSMDConfig(
            described,
            None if model.head is None else asdict(model.head.config),
            model.calibration,
            model.mask_id,
            model.vocab_size,
        )
        with torch.device("meta"):
            wrapper = cls(config)
        wrapper.ssmd = model
        wrapper.post_init()  # what is tied is found in the model's own modules
        return wrapper.eval()

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
        *,
        nfe: float | None = None,
        quality: calibration.Quality | None = None,
        order: Order | None = None,
        window: Window | int | None = None,
        rounds: int | None = None,
        sampler: Sampler | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        streamer: Any = None,
        return_dict_in_generate: bool = False,
    ) -> Tensor | SSMDOutput:
        """Fill the mask tokens of `input_ids`.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 0 at pads.
            nfe, quality, order, window, rounds, sampler, temperature, top_p, seed: as in
                `selfspec.generate`.
            streamer: with `put_draft`, is shown the sequence after every pass, one row at a time;
                with `put`, the result.
            return_dict_in_generate: return an `SSMDOutput`, not the sequences alone.

        Raises:
            ValueError: nothing is masked, or as `selfspec.generate`.
        """
        pad = torch.zeros_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            pad = attention_mask == 0
        masked = ((input_ids == self.ssmd.mask_id) & ~pad).sum(1)
        if not bool(masked.any()):
            raise ValueError(f"`input_ids` must hold the mask token {self.ssmd.mask_id} where "
                             "tokens are to be generated, got none")  # fmt: skip
        if sampler is None:
            sampler = calibration.choose(
                self.ssmd, nfe, quality, order, window, rounds, temperature, top_p
            )
        show = getattr(streamer, "put_draft", None)
        samples = sampler.sample(input_ids, seed, pad, watch=show)
        if streamer is not None:
            streamer.put(samples.tokens.cpu())
            streamer.end()
        if not return_dict_in_generate:
            return samples.tokens
        passes = samples.nfe
        return SSMDOutput(
            sequences=samples.tokens,
            tokens_per_forward=masked / passes,
            num_forward_passes=passes,
            acceptance_rate=samples.acceptance,
        )


def _built(config: SSMDConfig) -> SSMD:
    """The model of a config, with weights that are still to come."""
    if not config.trunk:
        raise ValueError("`config.trunk` must describe a trunk, got none")
    if config.trunk.get("kind") == "hub":
        trunk, _ = Reunion()(config.trunk, Path("config"))
    else:
        trunk = Trunk(TrunkConfig(**config.trunk))
    head = None if config.head is None else CausalHead(HeadConfig(**config.head), trunk.width)  # type: ignore[arg-type]
    model = SSMD(trunk, head)
    model.calibration = config.calibration
    return model


hf.AutoConfig.register(SSMDConfig.model_type, SSMDConfig)
hf.AutoModelForMaskedLM.register(SSMDConfig, SSMDForMaskedLM)
