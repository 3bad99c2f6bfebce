"""Complete training runs as functions; `ALL` and `ON_TRUNKS` find them by name.

from selfspec.recipes import books27
books27.trunk(steps=2000).trainer("runs/trunk", train, valid).run()
"""

from collections.abc import Callable

from selfspec.recipes import books27 as books27
from selfspec.recipes import books_bpe as books_bpe
from selfspec.recipes import guides as guides
from selfspec.recipes import proteins as proteins
from selfspec.recipes import uniref50 as uniref50
from selfspec.recipes.adapt_ar import adapt_ar as adapt_ar
from selfspec.recipes.attach import attach as attach
from selfspec.recipes.openwebtext import openwebtext as openwebtext
from selfspec.recipes.recipe import Recipe as Recipe
from selfspec.recipes.run import finish as finish
from selfspec.recipes.run import train as train
from selfspec.recipes.run import train_adapted as train_adapted
from selfspec.recipes.run import train_head as train_head
from selfspec.recipes.sdtt import distil as distil
from selfspec.recipes.text8 import text8 as text8
from selfspec.train import Trainer

ALL: dict[str, Callable[..., Recipe]] = {
    "books27-trunk": books27.trunk,
    "books27-head": books27.head,
    "books27-joint": books27.joint,
    "books27-windows": books27.windows,
    "books27-spaced": books27.spaced,
    "books27-sdtt": books27.sdtt,
    "books27-plain12": books27.plain12,
    "books27-judge": books27.judge,
    "books27-small-judge": books27.small_judge,
    "proteins-trunk": proteins.trunk,
    "proteins-head": proteins.head,
    "proteins-joint": proteins.joint,
    "proteins-windows": proteins.windows,
    "proteins-judge": proteins.judge,
    "books-bpe-trunk": books_bpe.trunk,
    "books-bpe-head": books_bpe.head,
    "books-bpe-joint": books_bpe.joint,
    "books-bpe-judge": books_bpe.judge,
    "text8": text8,
    "openwebtext": openwebtext,
}
ON_TRUNKS: dict[str, Callable[..., Trainer]] = {"uniref50": uniref50.trainer}
"""Of a head on a trunk of the Hub: from data and a folder, a trainer."""
