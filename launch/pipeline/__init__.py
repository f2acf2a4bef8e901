"""Several stages as one: queued at once, each waiting for the gate behind the one before it.

```
job of collect ← gate ← job of bc ← gate ← job of eval ← gate        (← waits for)

RUN_ROOT/pipelines/NAME/
  pipeline.json   the stages, their runs, jobs, gates and conditions; written before each submission, and after it
  claims/         which command is at it now
logs/NAME-gates/STAGE-KEY/   a gate's script, what sbatch said, its log
```
Models go from stage to stage by name: a gate that passes gives the version that its run has published the
pipeline's name as an alias, and the next stage asks for that.
"""
