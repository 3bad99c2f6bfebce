"""A recipe: everything that decides a training run, apart from the data themselves."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

import torch

from selfspec.data.corpus import Store
from selfspec.data.ragged import RaggedStore
from selfspec.data.tokenizers import CharTokenizer, Tokenizer
from selfspec.lengths import Lengths
from selfspec.model import SSMD, AutoregressiveModel
from selfspec.nn.head import CausalHead, HeadConfig
from selfspec.nn.scorer import Scorer
from selfspec.nn.transformer import Trunk, TrunkConfig
from selfspec.train import Diffusion, NextToken, Objective, TrainConfig, Trainer, initialise
from selfspec.train.parallel import group, rows_each


@dataclass(frozen=True)
class Recipe:
    """A model, an objective and the settings of the run.

    Attributes:
        name: for logs and folders.
        trunk: the trunk; a causal one makes an autoregressive model.
        objective: what to minimise.
        train: steps, batch size, optimisers.
        head: the causal head, if any.
        needs_start: whether the run must start from a trained model.
        valid_rows: rows of the validation set.
        tokenizer: goes with the model into its checkpoints; None takes that of the data, with its
            vocabulary.
    """

    name: str
    trunk: TrunkConfig
    objective: Objective
    train: TrainConfig
    head: HeadConfig | None = None
    needs_start: bool = False
    valid_rows: int = 1024
    tokenizer: Tokenizer | None = field(default_factory=CharTokenizer)

    def build(self) -> SSMD | AutoregressiveModel:
        """The untrained model, on the CPU; its weights follow from the seed."""
        with torch.random.fork_rng([]):
            torch.manual_seed(self.train.seed)
            trunk = Trunk(self.trunk)
            head = CausalHead(self.head, self.trunk.width) if self.head else None
        model = AutoregressiveModel(trunk) if self.trunk.causal else SSMD(trunk, head)
        model.tokenizer = self.tokenizer
        return model

    @classmethod
    def of(
        cls, model: SSMD | AutoregressiveModel, objective: Objective | None = None, **settings: Any
    ) -> Recipe:
        """The recipe that trains a copy of `model`, by the loss of its kind unless told otherwise.

        Args:
            model: with our own `Trunk`.
            objective: what to minimise.
            **settings: of `TrainConfig`; `steps` and `batch_size` have no default.
        """
        plain = NextToken() if isinstance(model, AutoregressiveModel) else Diffusion()
        head = model.head if isinstance(model, SSMD) else None
        return cls(
            name="further",
            trunk=model.trunk.config,  # type: ignore[arg-type]
            objective=objective or plain,
            train=TrainConfig(**settings),
            head=None if head is None else head.config,
            tokenizer=model.tokenizer,
        )

    def override(self, **settings: object) -> Recipe:
        """The recipe with other training settings: `recipe.override(steps=1000, seed=1)`."""
        return dataclasses.replace(self, train=dataclasses.replace(self.train, **settings))  # type: ignore[arg-type]

    def read_by(self, tokenizer: Tokenizer) -> Recipe:
        """The recipe for data of this tokenizer; V is the data's if the recipe has no tokenizer."""
        trunk = self.trunk
        if self.tokenizer is None:
            trunk = dataclasses.replace(trunk, vocab_size=tokenizer.vocab_size)
        return dataclasses.replace(self, trunk=trunk, tokenizer=tokenizer)

    def trainer(
        self,
        folder: str | os.PathLike[str] | None,
        train: Store,
        valid: Store | None = None,
        start: object = None,
        device: str | torch.device | None = None,
    ) -> Trainer:
        """A trainer of this recipe's model.

        Args:
            folder: for checkpoints and logs; a run found there is resumed.
            train: training tokens.
            valid: validation tokens; `valid_rows` rows spread evenly over them are used.
            start: a trained model, or the folder of its checkpoint, to start from.
            device: where to train; CUDA if there is one.

        Raises:
            ValueError: a `start` is needed, the data have another vocabulary, or the batch does not
                split over the processes.
        """
        if self.needs_start and start is None:
            raise ValueError("`start` must be a trained model for this recipe, got None")
        model = self.build()
        if start is not None:
            initialise(model, start)
        return make_trainer(
            model, self.objective, self.train, folder, train, valid, self.trunk.length,
            self.valid_rows, device,
        )  # fmt: skip


def default_device() -> str:
    """CUDA if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def make_trainer(
    model: SSMD | AutoregressiveModel | Scorer,
    objective: Objective,
    settings: TrainConfig,
    folder: str | os.PathLike[str] | None,
    train: Store,
    valid: Store | None,
    length: int,
    valid_rows: int,
    device: str | torch.device | None = None,
) -> Trainer:
    """A trainer of any model on rows of at most `length` tokens; arguments as in `Recipe`.

    Raises:
        ValueError: the data have another vocabulary, or the batch does not split over the
            processes.
    """
    # A small network beside a frozen model reads the tokens of that.
    reads: Any = getattr(objective, "model", model)
    size = reads.trunk.vocab_size
    for store in filter(None, (train, valid)):
        if store.vocab_size != size:
            raise ValueError(
                f"`trunk.vocab_size` must be {store.vocab_size}, that of {store.path}, got {size}"
            )
    share = rows_each(settings.batch_size, settings.accumulate)
    if isinstance(model, SSMD):
        model.calibration = []  # it was measured for the weights before
        if isinstance(train, RaggedStore):
            model.lengths = Lengths.of(train.lengths, length)
    device = device or default_device()
    batches = train.loader(length, share, settings.seed, *group())
    rows = None if valid is None else valid.excerpt(length, valid_rows)
    data = f"sha256:{train.sha256[:16]}"
    return Trainer(model.to(device), objective, settings, batches, folder, rows, data)
