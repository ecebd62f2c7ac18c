"""The eval task of several models: one that cannot be scored leaves the others alone."""

import argparse
import traceback
from pathlib import Path

from mmengine.config import Config
from opencompass.tasks import OpenICLEvalTask

from ..caches import use_writable
from .command import module_command


class WdmoeEvalTask(OpenICLEvalTask):
    """OpenCompass's eval task, model by model and dataset by dataset; it fails at the end if any failed."""

    model_cfgs: list
    dataset_cfgs: list[list]

    def get_command(self, cfg_path: str, template: str) -> str:
        """Start this module: the inherited method names the stock task's file."""
        return module_command("wdmoe_opencompass.harness.eval_task", cfg_path, template)

    def run(self) -> None:
        """Score everything that can be."""
        for said in use_writable(Path(self.work_dir)):  # of this machine: a cluster's nodes need not be alike
            self.logger.warning(said)
        pairs = [
            (model, dataset)
            for model, datasets in zip(self.model_cfgs, self.dataset_cfgs, strict=True)
            for dataset in datasets
        ]
        failed = []
        for model, dataset in pairs:
            self.model_cfgs, self.dataset_cfgs = [model], [[dataset]]
            try:
                super().run()
            except Exception as error:
                self.logger.error(traceback.format_exc())
                failed.append(f"{model['abbr']}/{dataset['abbr']}: {type(error).__name__}: {error}")
        if failed:
            raise RuntimeError("not scored: " + "; ".join(failed))


def main() -> None:
    """Run one dumped task config."""
    parser = argparse.ArgumentParser(description="Run one eval task of a dumped OpenCompass config")
    parser.add_argument("config")
    WdmoeEvalTask(Config.fromfile(parser.parse_args().config)).run()


if __name__ == "__main__":
    main()
