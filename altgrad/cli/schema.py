"""`altgrad schema`: the JSON Schema of a spec file, so that an editor completes and checks it while it is typed.

    altgrad schema run > matrices/run.schema.json
    altgrad schema matrix > matrices/matrix.schema.json

and `# yaml-language-server: $schema=run.schema.json` as a spec's first line. What is in it is told in
`altgrad.spec.schema`.
"""

import json

from altgrad.cli import console
from altgrad.cli.usage import Program

app = Program(help="JSON Schemas of spec files, for editors.", no_args_is_help=True)


@app.callback()
def schema() -> None:
    """JSON Schemas of spec files, for editors."""


@app.command("run")
def run_schema() -> None:
    """Print the JSON Schema of a run spec."""
    from altgrad.spec import json_schema
    from altgrad.training.run import RunSpec

    console.say(json.dumps(json_schema(RunSpec, "AltGrad run spec"), indent=1, ensure_ascii=False))


@app.command("matrix")
def matrix_schema() -> None:
    """Print the JSON Schema of a matrix of runs."""
    from altgrad.matrix import Matrix
    from altgrad.spec import json_schema

    console.say(json.dumps(json_schema(Matrix, "AltGrad matrix"), indent=1, ensure_ascii=False))
