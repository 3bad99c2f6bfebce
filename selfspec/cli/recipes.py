"""`selfspec recipes`: what can be trained by name, and what it costs."""

from __future__ import annotations

from selfspec.cli.common import Run, table, to_json


def recipes(run: Run) -> None:
    """List the recipes, with what their runs cost.

    H200-hours come from the measured speed of training, where there is a report of it.

    Args:
        run: device and seed play no part here.
    """
    from selfspec.recipes import ALL
    from selfspec.recipes.cost import cost, measured_speed

    costs, hours = {}, {}
    for name, make in ALL.items():
        recipe = make()
        costs[name] = it = cost(recipe)
        speed = measured_speed(recipe.trunk.width)
        hours[name] = None if speed is None else it.gpu_hours(speed)
    if run.json:
        return print(to_json({name: {**vars(it), "h200_hours": hours[name]}
                              for name, it in costs.items()}))  # fmt: skip
    rows = [
        [name, f"{it.parameters / 1e6:.1f}M", f"{it.tokens / 1e6:,.0f}M", f"{it.flops:.1e}",
         _short(hours[name])]
        for name, it in costs.items()
    ]  # fmt: skip
    print(table(["recipe", "parameters", "tokens", "FLOPs", "H200-hours"], rows))


def _short(hours: float | None) -> str:
    """Hours with a digit that says something."""
    if hours is None:
        return "not measured"
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.1g}"
