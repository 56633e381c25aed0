"""Options that several verbs share."""

from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: auto, ray://host:port or host:port. Without it (and RAY_ADDRESS) a Ray of its own is "
        "started here and stopped at the end.",
        show_default=False,
    ),
]
Replicas = Annotated[int, typer.Option(min=1, help="Model replicas; a matter of speed alone.")]
Cpus = Annotated[float, typer.Option(min=0.1, help="Cores of a replica or training worker.")]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of a replica or training worker; 0.5: two share one.")]
Store = Annotated[str, typer.Option(help="Where results are: a folder or s3://bucket/prefix.", show_default=False)]
Precision = Annotated[
    str, typer.Option(help="In which gradients are taken: fp32, tf32 (GPUs), bf16. Other precisions, other bits.")
]
Compiled = Annotated[
    bool, typer.Option("--compiled", help="Let torch.compile make the gradients; other bits, too.", show_default=False)
]
Size = Annotated[
    int | None,
    typer.Option(
        min=8, help="Height and width to bring the images to, pixels; default: as stored.", show_default=False
    ),
]

# Said here once more, since uapray.config takes long to import; a test compares the two.
USUAL_XI_FROM = "whole-images"
XiFrom = Annotated[
    str, typer.Option(help="Which norm zeta is a share of: that of whole-images, or of their first-channel alone.")
]
DEFAULT_RULE = "aimed-ascent"
RULES = "aimed-ascent, spgd, sga, df-uap, cosine-uap, uap-fgsm, uap-deepfool, hill-climb, cma-es, pso, de, ga, random"
Rule = Annotated[str, typer.Option(help=f"How it is searched, one of {RULES}.")]
