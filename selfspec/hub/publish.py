"""Checkpoints on the Hugging Face Hub: a model card, up, and down again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from selfspec import checkpoint
from selfspec.model import SSMD

__all__ = ["download", "model_card", "push_to_hub"]

FILES = ["config.json", "*.safetensors", "tokenizer/*", "README.md"]
KNOBS = ("rounds", "schedule", "steps")
"""What a row of a calibration table says of its sampler beside the window."""

CARD = """\
---
{metadata}
---

# {name}

{summary} It drafts several tokens at once with the trunk and verifies them with the head:
*Self-Speculative Masked Diffusions*, Campbell, De Bortoli, Shi and Doucet, arXiv 2510.03929.

```python
import selfspec as ss  # pip install selfspec[hf]

model = ss.load("{repo_id}")
samples = ss.generate(model, 8)
```

| | |
|---|---|
{facts}

{calibration}The law of the samples depends on window, rounds and order; nothing here is lossless.
Limits and licence of the trunk apply.
"""


def model_card(config: Mapping[str, Any], repo_id: str, licence: str | None = None) -> str:
    """The README of a repository, from the `config.json` of the checkpoint in it.

    Args:
        config: as `checkpoint.load_config` reads it.
        repo_id: "owner/name" of the repository.
        licence: its identifier on the Hub, such as "mit"; none is claimed by default.
    """
    trunk, head = config["trunk"], config["head"]
    hub = trunk.get("kind") == "hub"
    base = trunk["name"] if hub and not Path(trunk["name"]).is_absolute() else ""
    metadata = {
        "library_name": "selfspec",
        "license": licence,
        "base_model": base,
        "tags": "[masked-diffusion, speculative-decoding]",
    }
    whole = "trunk and head in one file" if not hub or trunk["model"] else "the head alone"
    facts = {
        "trunk": (base or "a model of the Hub's classes") if hub else _shape(trunk),
        "trunk's revision": trunk.get("revision"),
        "trunk's weights, SHA-256": trunk.get("sha256"),
        "head": head and _shape(head),
        "in this repository": f"{whole}, {config['dtype']}, SHA-256 {config['sha256']}",
        **_training(config.get("training") or {}),
    }
    of = f" for [{base}](https://huggingface.co/{base})" if base else ""
    summary = f"A causal verifier head{of}." if hub else "A self-speculative masked diffusion."
    return CARD.format(
        metadata="\n".join(f"{key}: {value}" for key, value in metadata.items() if value),
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        summary=summary,
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items() if value),
        calibration=_table(config.get("calibration") or []),
    )


def push_to_hub(
    model: SSMD,
    repo_id: str,
    *,
    licence: str | None = None,
    merge: bool = False,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload with selfspec",
    **extra: Any,
) -> str:
    """Upload a checkpoint with its model card; the repository is made if missing.

    Args:
        model: what `checkpoint.save` can write.
        repo_id: "owner/name".
        licence: as in `model_card`.
        merge: as in `checkpoint.save`.
        private: of a new repository.
        token: of the Hub; the one of `hf auth login` by default.
        message: of the commit.
        **extra: for the config, as in `checkpoint.save`.

    Returns:
        The address of the commit.

    Raises:
        ValueError: `repo_id` is no "owner/name", the trunk of a head is in a folder of this
            machine, or the library is not installed.
    """
    if repo_id.count("/") != 1:
        raise ValueError(f"`repo_id` must be 'owner/name', got {repo_id!r}")
    api = _library().HfApi(token=token)
    with TemporaryDirectory() as folder:
        checkpoint.save(model, folder, merge=merge, **extra)
        config = checkpoint.load_config(Path(folder))
        trunk = config["trunk"]
        if trunk.get("kind") == "hub" and not trunk["model"] and Path(trunk["name"]).is_absolute():
            raise ValueError("`merge` must be True for a trunk that nobody else can load: it is in "
                             f"the folder {trunk['name']}")  # fmt: skip
        card = model_card(config, repo_id, licence)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))


def download(repo_id: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint on the Hub, in the Hub's cache; code is not downloaded.

    Raises:
        OSError: there is none of this name, or no connection.
    """
    return Path(_library().snapshot_download(repo_id, revision=revision, allow_patterns=FILES))


def _library() -> Any:
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("the Hub needs `pip install selfspec[hf]`") from error
    return huggingface_hub


def _shape(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _training(training: Mapping[str, Any]) -> dict[str, str | None]:
    if not training:
        return {}
    losses = training.get("validation") or {}
    nats = ", ".join(f"{name} {value:.4f}" for name, value in losses.items())
    return {
        "steps of training": str(training.get("step", "")),
        "data": (training.get("run") or {}).get("data"),
        "validation, nats per token": nats,
    }


def _table(rows: list[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [
        "| sampler | order | settings | NFE | judge, bits per token |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        settings = _shape({**row.get("window", {}), **{k: row[k] for k in KNOBS if k in row}})
        lines.append(f"| {row['sampler']} | {row['order']} | {settings} | {row['nfe']} "
                     f"| {row['judge']} |")  # fmt: skip
    return "\n".join(lines) + "\n\n"
