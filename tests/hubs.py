"""Tiny random models of the real classes of the Hub, and one whose code is its owner's."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch import nn

from selfspec.data.tokenizers import ESM_ALPHABET
from selfspec.hub import mdlm

hf: Any = transformers
PAD, UNKNOWN, CLS, SEP, MASK = range(5)
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
SHAPE: dict[str, Any] = {
    "vocab_size": 25,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
}


def tokenizer(letters: str = LETTERS) -> Any:
    """A BERT tokenizer of single letters."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    return hf.BertTokenizer(vocab={name: i for i, name in enumerate(names)}, do_lower_case=False)


def esm_tokenizer(folder: Path) -> Any:
    """The tokenizer of ESM-2; its file is written to the folder."""
    names = {"^": "<cls>", "~": "<pad>", "$": "<eos>", "?": "<unk>", "!": "<null_1>"}
    tokens = [names.get(letter, letter) for letter in ESM_ALPHABET] + ["<mask>"]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    return hf.EsmTokenizer(str(folder / "vocab.txt"))


def bert(**changes: Any) -> Any:
    return _random(hf.BertForMaskedLM, hf.BertConfig(**{**SHAPE, **changes}))


def roberta() -> Any:
    return _random(hf.RobertaForMaskedLM, hf.RobertaConfig(**{**SHAPE, "pad_token_id": 1}))


def modernbert() -> Any:
    special = {"cls_token_id": CLS, "sep_token_id": SEP, "bos_token_id": CLS, "eos_token_id": SEP}
    config = hf.ModernBertConfig(**SHAPE, **special, local_attention=8)
    return _random(hf.ModernBertForMaskedLM, config)


def deberta() -> Any:
    return _random(hf.DebertaV2ForMaskedLM, hf.DebertaV2Config(**SHAPE, type_vocab_size=0))


def distilbert() -> Any:
    shape: Any = {"vocab_size": 25, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    config = hf.DistilBertConfig(**shape, max_position_embeddings=40, pad_token_id=PAD)
    return _random(hf.DistilBertForMaskedLM, config)


def electra() -> Any:
    return _random(hf.ElectraForMaskedLM, hf.ElectraConfig(**SHAPE, embedding_size=32))


def esm(**changes: Any) -> Any:
    config = {**SHAPE, "mask_token_id": MASK, "position_embedding_type": "rotary", **changes}
    return _random(hf.EsmForMaskedLM, hf.EsmConfig(**config, token_dropout=True))


def llama(**changes: Any) -> Any:
    """Llama's; keys and values are shared by two heads."""
    special = {"bos_token_id": CLS, "eos_token_id": SEP, "num_key_value_heads": 1}
    return _random(hf.LlamaForCausalLM, hf.LlamaConfig(**{**SHAPE, **special, **changes}))


def gpt2(**changes: Any) -> Any:
    """GPT-2's, with its dropout and its table of positions."""
    shape: Any = {"vocab_size": 25, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40}
    special = {"bos_token_id": SEP, "eos_token_id": SEP}
    return _random(hf.GPT2LMHeadModel, hf.GPT2Config(**shape, **special, **changes))


def dit() -> Any:
    shape: Any = {"vocab_size": 25, "hidden_dim": 32, "cond_dim": 16, "n_blocks": 2, "n_heads": 2}
    return _random(mdlm.DiT, mdlm.DiTConfig(model_length=40, **shape))


def llada() -> Any:
    return llama(architectures=["LLaDAModelLM"], mask_token_id=MASK)


def dream() -> Any:
    special = {"mask_token_id": MASK, "num_key_value_heads": 1, "architectures": ["DreamModel"]}
    return _random(hf.Qwen2ForCausalLM, hf.Qwen2Config(**SHAPE, **special))


REMOTE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class Config(PretrainedConfig):
    model_type = "stranger"


class Base(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = torch.nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, input_ids, attention_mask=None):
        x = self.wte(input_ids)
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen = seen.unsqueeze(-1).to(x.dtype)
        return ((x + (x * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)).tanh(),)


class StrangerForMaskedLM(PreTrainedModel):
    config_class = Config
    base_model_prefix = "base"

    def __init__(self, config):
        super().__init__(config)
        self.base = Base(config)
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.base.wte

    def forward(self, input_ids, attention_mask=None):
        return MaskedLMOutput(logits=self.lm_head(self.base(input_ids, attention_mask)[0]))
"""


def publish_remote(folder: Path) -> Path:
    """A masked model whose classes lie beside its weights, as on the Hub; with a tokenizer."""
    module = ModuleType("remote")
    exec(REMOTE, module.__dict__)
    shape = {"vocab_size": 25, "hidden_size": 32, "num_hidden_layers": 1}
    shape["max_position_embeddings"] = 40
    places = {"AutoConfig": "modeling.Config",
              "AutoModelForMaskedLM": "modeling.StrangerForMaskedLM"}  # fmt: skip
    config = module.Config(**shape, mask_token_id=MASK, pad_token_id=PAD, auto_map=places)
    _random(module.StrangerForMaskedLM, config).save_pretrained(folder)
    (folder / "modeling.py").write_text(REMOTE)
    tokenizer().save_pretrained(folder)
    return folder


def _random(kind: Any, *arguments: Any, **options: Any) -> Any:
    """A model whose logits are far from uniform, and in which nothing is 0 or 1 by default."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        model = kind(*arguments, **options).eval()
        for parameter in model.parameters():
            offset = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
            nn.init.normal_(parameter, mean=offset, std=0.2)
    return model
