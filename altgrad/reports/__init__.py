"""From the runs of a project to a verdict with its uncertainty, the reasons, and figures. Without torch.

    altgrad.store -> reading (one run) -> project (all of them) -> arms, effects -> sections -> page, markdown, terminal

What is compared is found in the specs themselves (`arms`), the statistics are those of `intervals`, `verdicts`,
`best` and `planning`, and each section of the report is one file in `sections/`.
"""
