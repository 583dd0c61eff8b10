"""Fine-tune a language model on one or more tasks, plainly or with an adversarial regularizer.

python train.py --task_def experiments/glue/glue_task_def.yml --adv_train --adv_norm_level post_ln
"""

from __future__ import annotations

from collections.abc import Sequence

from data_utils.errors import run_command_line
from mt_dnn.configuration.config import parse_args


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and train; without `argv`, this process's own command line."""
    config = parse_args(argv)
    # After the flags, so that --help and a mistake in a flag answer at once.
    from mt_dnn.training.dry_run import dry_run
    from mt_dnn.training.trainer import train

    (dry_run if config.training.dry_run else train)(config)


if __name__ == "__main__":
    run_command_line(main)
