"""Arguments that cannot be parsed: one line, exit code 2."""

import pytest

from selfspec.cli import main
from selfspec.cli.usage import folded

CASES = [
    (["infill"], "Missing from selfspec infill: TEXT; see selfspec infill --help"),
    (["train"], "Missing from selfspec train: RECIPE, --data PATH, --out PATH"),
    (["sample", "--num", "1.5"], "Error parsing --num: invalid literal for int() with base 10"),
    (["sample", "--nfe"], "Missing value for argument '--nfe'. Expected 1 values; see"),
    (["sample", "--nfee", "8"], "Unrecognized options: --nfee, 8 (perhaps you meant --nfe FLOAT)"),
    (
        ["sample", "--quality", "fastest"],
        "invalid choice 'fastest' for argument '--quality'. "
        "Expected one of balanced, best, fast; see selfspec sample --help",
    ),
    (["prepare", "books"], "proteins, text8, texts; see selfspec prepare --help"),
]


@pytest.mark.parametrize("columns", [40, 200])
@pytest.mark.parametrize(("argv", "said"), CASES)
def test_what_cannot_be_parsed_is_said_in_one_line(
    argv: list[str],
    said: str,
    columns: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("selfspec: ")
    assert err.count("\n") == 1
    assert said.split()[0] in err
    if columns == 200:  # what is wrapped in a narrow box may have a space in a word
        assert said in err


def test_help_is_no_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit:
        main(["sample", "--help"])
    assert not exit.value.code
    assert "--nfe FLOAT" in capsys.readouterr().out


BOX = """\
╭─ Unrecognized options ─────────────────╮
│ Unrecognized options: --nfee           │
│ ────────────────────────────────────── │
│ Perhaps you meant:                     │
│     --nfe FLOAT                        │
│         the most function evaluations. │
│ ────────────────────────────────────── │
│ For full helptext, run selfspec --help │
╰────────────────────────────────────────╯
"""


@pytest.mark.parametrize("drawn", [True, False])
def test_a_box_is_folded_however_it_is_drawn(drawn: bool):
    lines = BOX.splitlines()
    plain = [" Unrecognized options", " " + "-" * 40, *(f"  {line[2:-2]}" for line in lines[1:-1])]
    box = BOX if drawn else "\n".join(plain).replace("─", "-")
    assert folded(box) == (
        "Unrecognized options: --nfee (perhaps you meant --nfe FLOAT); see selfspec --help"
    )
