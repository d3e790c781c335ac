"""The `recon-train` command line. Each command imports what it needs, so `--help` answers without loading torch."""

from __future__ import annotations

import os
import sys

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import refused
from recon.pipeline.base.limits import WITH_TORCH, check_limits
from recon.pipeline.base.machine import use_allowed_cores
from recon.pipeline.base.program import make_program, name_stores_either_way
from recon.pipeline.base.wording import shown
from recon.trainer.commands import looking, measuring, serving, telling, training, transfer, using

app = make_program(
    "Pretrain ReCon on a feature store and measure what it learnt.\n\nExit status: 0 done, 1 failed, 2 a mistyped "
    "command line, 130 interrupted."
)
PARTS = (training, transfer, measuring, looking, using, serving, telling)
for command in (command for part in PARTS for command in part.COMMANDS):
    app.command(command.__name__)(command)
name_stores_either_way(app)


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit status 1."""
    use_allowed_cores()
    if "RANK" in os.environ:  # several pages from each of several processes when one of them ends
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        check_limits(WITH_TORCH)
        app()
    except (UserError, OSError) as error:
        line = error if isinstance(error, UserError) else refused(error)
        if line is None:
            raise
        sys.stderr.write(f"error: {shown(str(line))}\n")
        sys.exit(1)
