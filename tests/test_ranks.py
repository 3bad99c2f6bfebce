"""Work shared by processes: all of it is done, once, and the figures are those of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing as mp

from selfspec.train.parallel import group, processes, share

ROOT = Path(__file__).parents[1]


def _work(rank: int, world: int, port: int, folder: str) -> None:
    """What a process of the test below does."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    with processes("cpu"):
        found: dict[str, Any] = {
            str(n): [list(range(99)[part]) for part in share(n, lambda part: part)]
            for n in (0, 1, 2, 3, 7)
        }
        try:
            share(4, lambda part: [][part.start - 2])  # the second rank has no such entry
        except IndexError:
            found["raised"] = True
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_every_row_is_done_once_and_all_ranks_have_all(tmp_path: Path):
    mp.spawn(_work, (2, free_port(), str(tmp_path)), nprocs=2)  # type: ignore[attr-defined]
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.pop("raised")  # by the other rank too, which would wait for ever
        assert found == {"0": [], "1": [[0]], "2": [[0], [1]], "3": [[0], [1, 2]],
                         "7": [[0, 1, 2], [3, 4, 5, 6]]}  # fmt: skip


def test_one_process_does_all():
    with processes("cpu"):
        assert group() == (0, 1)
        assert share(3, lambda part: list(range(3)[part])) == [[0, 1, 2]]
        with pytest.raises(KeyError):
            share(3, lambda part: {}[part.start])


def test_parts_of_a_run_are_the_run():
    import tiny  # here, so that the processes above need not wait for it
    from torch import Tensor

    import selfspec as ss
    from selfspec.interfaces import Samples

    model = tiny.protein()
    whole = ss.generate(model, 7, seed=5, rounds=2)
    parts = [
        ss.generate(model, 3, seed=5, rounds=2),
        ss.generate(model, 4, seed=5, rounds=2, first=3),
    ]
    joined = Samples.concatenate([part.cpu() for part in parts])
    assert joined.text == whole.text
    assert whole.pad is not None
    assert joined.pad is not None
    assert joined.pad.equal(whole.pad)  # though neither part need be as wide
    narrow = [ss.generate(model, 1, seed=5, first=row, rounds=2) for row in range(7)]
    assert len({part.tokens.shape[1] for part in narrow}) > 1

    def real(samples: Samples) -> Tensor:
        assert samples.pad is not None
        return samples.tokens.masked_fill(samples.pad, 0)

    assert real(Samples.concatenate(narrow)).equal(real(whole))
    uneven = [ss.generate(tiny.model(), 2, length=length, rounds=1) for length in (5, 9)]
    for part in uneven:
        part.pad = None
    assert Samples.concatenate(uneven).rows.count(1).tolist() == [5, 5, 9, 9]
    assert Samples.concatenate(uneven[:1]).pad is None


def on_two(*arguments: str) -> str:
    """What a command prints under torchrun."""
    # Without the "--" torchrun takes --num for an option of its own.
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    command = [sys.executable, "-m", *launcher, str(free_port()), "-m", "--", "selfspec"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def test_two_processes_draw_the_shards_of_one(tmp_path: Path):
    import tiny

    from selfspec import checkpoint
    from selfspec.cli import main

    checkpoint.save(tiny.model(), tmp_path / "model")
    arguments = ["sample", "--checkpoint", str(tmp_path / "model"), "--num", "100", "--length",
                 "3", "--window", "3", "--rounds", "1", "--device", "cpu", "--out"]  # fmt: skip
    assert main([*arguments, str(tmp_path / "one")]) == 0
    told = json.loads(on_two(*arguments, str(tmp_path / "two"), "--json"))
    assert (told["n"], told["processes"]) == (64, 2)  # one object: of the first process
    texts = json.loads(on_two(*arguments[:3], "--device", "cpu", "--json"))
    assert len(texts["samples"]) == 1
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
                for folder in ("one", "two"))  # fmt: skip
    assert len(one) == 3  # two shards, one for each
    assert one == two


def test_two_processes_evaluate_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`selfspec evaluate` with every metric that takes time, alone and under torchrun."""
    import hubs
    import tiny

    import selfspec as ss
    from selfspec import checkpoint
    from selfspec.cli import main
    from selfspec.data.corpus import write_corpus

    model, judge, words, corpus = (tmp_path / name for name in ("model", "judge", "words", "data"))
    checkpoint.save(tiny.model(), model)
    checkpoint.save(tiny.judge(), judge)
    for made, folder in ((hubs.gpt2(), words / "gpt2"), (hubs.bert(), words / "bert")):
        made.save_pretrained(folder)
        hubs.tokenizer().save_pretrained(folder)
    text = "the cat sat on the mat and the dog saw it " * 40
    write_corpus(corpus, {"train": [text], "valid": [text]}, ss.CharTokenizer())
    metrics = [
        "judge",
        "hf-judge",
        "distinct",
        "entropy",
        "kl",
        "mauve",
        "bound",
        "heldout",
        "cost",
    ]
    arguments = [
        "evaluate", str(model), "--metrics", *metrics, "--num", "21", "--heldout-blocks", "5",
        "--judge", str(judge), "--hf-judge", str(words / "gpt2"), "--encoder", str(words / "bert"),
        "--data", str(corpus), "--split", "valid", "--rounds", "2", "--dtau", "0.1", "--json",
        "--device", "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    alone = json.loads(capsys.readouterr().out)
    two = json.loads(on_two(*arguments))  # one report, by the first process
    assert alone.keys() == two.keys()
    for name, value in alone.items():
        if name != "seconds":
            assert two[name] == (
                pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            )
    assert alone["n"] == 21
    assert 0 < alone["mauve"] <= 1
    assert alone["bound_per_character"] == pytest.approx(alone["bound"])  # a token is a character
    assert alone["hf_judge"] > 0
