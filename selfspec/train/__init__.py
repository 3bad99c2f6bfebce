"""Training: one loop, three objectives, exact resume."""

from selfspec.train.config import AdamWConfig as AdamWConfig
from selfspec.train.config import Cosine as Cosine
from selfspec.train.config import MuonConfig as MuonConfig
from selfspec.train.config import TrainConfig as TrainConfig
from selfspec.train.config import WarmupStableDecay as WarmupStableDecay
from selfspec.train.objectives import Diffusion as Diffusion
from selfspec.train.objectives import NextToken as NextToken
from selfspec.train.objectives import Objective as Objective
from selfspec.train.state import CheckpointError as CheckpointError
from selfspec.train.trainer import Trainer as Trainer
from selfspec.train.trainer import initialise as initialise
