"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[Path, typer.Option(help="Folder of the studies.")]
Study = Annotated[str | None, typer.Argument(help="Folder of a study, or its name; left out: the last one.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another value of a recipe's field.")]
SetData = Annotated[
    list[str] | None, typer.Option("--set", metavar="data.KEY=VALUE", help="Another value of a field of data.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Only JSON on standard output.")]
Cache = Annotated[
    Path,
    typer.Option(envvar="ELTA_TUNE_CACHE", show_envvar=True, help="Folder of decoded images, shared by all studies."),
]
MODEL = typer.Argument(
    metavar="MODEL",
    help="An exported ckpt, safetensors or hf, a released checkpoint, STUDY (its best trial), STUDY:TRIAL or a trial's "
    "folder.",
)
Head = Annotated[
    str | None,
    typer.Option(metavar="emd|mse", help="Of a released checkpoint, which holds both.", show_default="the trained one"),
]
Device = Annotated[str, typer.Option(help="cpu, cuda:0, mps; auto: the first GPU, else the CPU.")]
