"""Golden texts of the recipes, and README's table of them: a change of any shows as a reviewable diff.

./tools/run python -m tests.golden        rewrites them
"""

import re
from pathlib import Path

from nanigpt.cli.count import costs_of_recipes, table
from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.config.registry import recipes
from nanigpt.config.view.show import render
from nanigpt.models.init import named_state
from nanigpt.optim.adamw import parameter_groups

FOLDER = Path(__file__).parent
README = FOLDER.parents[1] / "README.md"
_BEGIN = "<!-- what `count` prints, by: ./tools/run python -m tests.golden -->\n"
_END = "<!-- end of it -->\n"


def golden_text(recipe: str) -> str:
    """The resolved config, then shape, initialiser and weight decay of each parameter."""
    cfg = compose([f"config:{recipe}"])
    trainer = build(cfg)
    decay = {
        name: group["weight_decay"]
        for group in parameter_groups(trainer.model.named_parameters(), cfg.optimizer.weight_decay)
        for name, _ in group["params"]
    }
    rows: dict[str, list[str]] = {}
    for name, module, local, tensor in named_state(trainer.model):
        if name in decay:
            initializer = module.initializers()[local]
            values = ", ".join(f"{k}={v}" for k, v in vars(initializer).items())
            row = (
                f"{list(tensor.shape)}  {type(initializer).__name__}({values})  "
                f"weight decay {decay[name]}"
            )
            rows.setdefault(re.sub(r"\.\d+\.", ".*.", name) + f"  {row}", []).append(name)
    parameters = [f"{row}  x{len(names)}" for row, names in rows.items()]
    return "\n".join([render(cfg), "", "parameters", *parameters, ""])


def readme() -> str:
    """README.md with the table of recipes as it should be."""
    before, rest = README.read_text().split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n{table(costs_of_recipes())}\n\n{_END}{after}"


def rewrite() -> None:
    for recipe in recipes():
        (FOLDER / f"{recipe}.txt").write_text(golden_text(recipe))
        print(FOLDER / f"{recipe}.txt")
    README.write_text(readme())
    print(README)
