"""edgeglm: GLM-family checkpoints to proven device bundles."""

from edgeglm.telemetry import disable_telemetry

# Here, because whoever imports an engine through edgeglm has imported this file before: the command line, a runner in
# somebody's own program, run.pyz, and every process of an export.
disable_telemetry()
