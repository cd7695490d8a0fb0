"""``spannerlm export``: what a run knows, as files that trainers take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from spannerlm.options import Json, examples
from spannerlm.terminal import boundary, print_json, print_lines, reserved_stdout

HELP = "Write what a run knows as data that trainers take."
EXAMPLES = examples(
    "spannerlm export runs/helpdesk-1 --format sft -n 8 --out sft.jsonl",
    "spannerlm export runs/helpdesk-1 --format preference --out pairs          a dataset with its card",
    "spannerlm export runs/helpdesk-1 --format policy-preference --conversational --out pairs.parquet",
)


def export(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a run.", show_default=False)],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="preference, policy-preference, sft, reward or prompts.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="A .jsonl, .parquet or .csv file, or a directory: a dataset.", show_default=False
        ),
    ],
    n: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Rows of each prompt, where the policy draws.")] = 4,
    kl: Annotated[
        float | None,
        typer.Option(metavar="NATS", help="KL of the policy; otherwise the run's.", show_default=False),
    ] = None,
    margin: Annotated[float, typer.Option(metavar="R", min=0.0, help="Least difference of rewards of a pair.")] = 0.0,
    conversational: Annotated[
        bool, typer.Option(help="Texts as lists of messages; always so where prompts are conversations.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Write what a run knows as data that trainers take, in the columns of TRL.

    preference: pairs from what was labelled; policy-preference: a draw of the learned policy against one of the base
    model; sft: draws of the policy; reward: labels with their rewards; prompts: the prompts alone. Nothing is drawn and
    no model is loaded: draws of the policy are the run's own, resampled with its weights.
    """
    with boundary(as_json):
        from spannerlm.exporting import Kind, exported, write_export

        found = exported(
            directory, cast(Kind, format), n=n, kl=kl, margin=margin, conversational=conversational, seed=seed
        )
        write_export(found, out)
        with reserved_stdout(as_json) as console:
            if as_json:
                print_json(console, {"file": str(out), "left_out": dict(found.left_out), **found.about})
            else:
                left = [f"left out: {number} {why}" for why, number in found.left_out.items()]
                print_lines(console, [f"{out}: {len(found.rows):,} rows of {found.kind}", *left])
