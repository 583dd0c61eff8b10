"""What `--save_hf` and `--push_to_hub` write at the end of a run."""

from __future__ import annotations

import logging
from pathlib import Path

from accelerate import Accelerator

from mt_dnn.checkpoints.checkpoint import load_checkpoint, load_state
from mt_dnn.configuration.config import Config
from mt_dnn.data.run_data import RunData
from mt_dnn.export.export import HfExport
from mt_dnn.export.hub import HubRepo
from mt_dnn.export.model_card import card_of_run
from mt_dnn.matcher import SANBertNetwork
from mt_dnn.reporting.run_result import RunResult

logger = logging.getLogger(__name__)


class RunExport:
    """Checks before training that the folder and the repository can be written, and writes them after it.

    Args:
        config: of the run, with `--save_hf`.
        data, network: of the run.
        accelerator: its processes; the main one writes.
        output_dir: of the run, which may replace what it exported before.

    Raises:
        UserError: a head that transformers does not have, a folder that is not empty, no login at the Hub.
    """

    def __init__(
        self, config: Config, data: RunData, network: SANBertNetwork, accelerator: Accelerator, output_dir: Path
    ):
        self.config, self.data, self.network, self.accelerator = config, data, network, accelerator
        training = config.training
        heads = {task: task_id for task_id, task in enumerate(data.tasks)}
        self.export = HfExport(config, network, heads, output_dir)
        self.hub: HubRepo | None = None
        if training.push_to_hub is not None and accelerator.is_main_process and not training.encode_mode:
            self.hub = HubRepo(training.push_to_hub, training.hub_private, str(training.save_hf))

    @property
    def folder(self) -> Path:
        return self.export.folder

    def write(self, result: RunResult, best: Path | None) -> None:
        """Write the best epoch's model, which the network then holds.

        Args:
            best: its checkpoint; None where a resume left it in another folder: then the last epoch's model is written.
        """
        if best is not None:
            load_state(self.network, load_checkpoint(best)["state"], best)
        epoch = result.history[-1]["epoch"] if best is None else result.best_epoch
        place = str(self.folder) if self.hub is None else self.hub.name
        self.export.write(card_of_run(self.config, self.data, result, epoch, self.accelerator.num_processes, place))
        which = f"epoch {epoch + 1}"
        if best is None:
            folder, missing = self.config.training.output_dir, result.best_epoch + 1
            which = f"the last epoch, for {folder} has no checkpoint of epoch {missing} of this run"
        logger.info("--save_hf: %s holds the model of %s", self.folder, which)

    def push(self) -> None:
        """Upload the folder, with `--push_to_hub`."""
        if self.hub is not None:
            logger.info("--push_to_hub: %s", self.hub.push())
