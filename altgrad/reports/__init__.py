"""From the runs of a project to a verdict with its uncertainty, the reasons, and figures. Without torch.

    altgrad.store -> reading (one run) -> project (all of them) -> answer, effects -> sections
        -> page (figures, inline_svg, or plotly_figures), markdown, terminal

What is compared is found in the specs themselves (`arms`), the statistics are those of `altgrad.statistics`, and each
section of the report is one file in `sections/`.
"""
