"""Training: one loop, an objective a job, exact resume."""

from selfspec.train.config import AdamWConfig as AdamWConfig
from selfspec.train.config import Cosine as Cosine
from selfspec.train.config import MuonConfig as MuonConfig
from selfspec.train.config import TrainConfig as TrainConfig
from selfspec.train.config import WarmupStableDecay as WarmupStableDecay
from selfspec.train.distillation import Distillation as Distillation
from selfspec.train.guides import GRPO as GRPO
from selfspec.train.guides import Errors as Errors
from selfspec.train.guides import Likelihood as Likelihood
from selfspec.train.initial import initialise as initialise
from selfspec.train.objectives import Chance as Chance
from selfspec.train.objectives import Diffusion as Diffusion
from selfspec.train.objectives import NextToken as NextToken
from selfspec.train.objectives import Objective as Objective
from selfspec.train.ordered import OrderedDiffusion as OrderedDiffusion
from selfspec.train.state import CheckpointError as CheckpointError
from selfspec.train.trainer import Trainer as Trainer
