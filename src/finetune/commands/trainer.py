"""fit, validate and test: Lightning's command line around one classifier and one folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from inspect import signature
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from typing_extensions import override

from finetune.commands.apply_recipe import choose_size, name_backbone
from finetune.commands.config_files import checkpoint_option
from finetune.commands.held_out_images import label_columns_of, split_settings
from finetune.commands.parsing import explain, take_all
from finetune.commands.resume import keep_settings
from finetune.commands.trainer_options import (
    check_each,
    check_no_null,
    check_strategy,
    check_together,
)
from finetune.commands.trusted_imports import denied_import, trust
from finetune.data.datamodule import ImageFolderDataModule
from finetune.documents import yaml_of
from finetune.errors import FinetuneError, UsageError
from finetune.extras import need
from finetune.processes import own_place
from finetune.runtime import Runtime, devices_of_launched
from finetune.spec.choices import Engine
from finetune.spec.schema import optional
from finetune.spec.settings import SEED, check_settings
from finetune.spec.splits import SplitRecord
from finetune.training.checkpoint_schema import damaged
from finetune.training.checkpoints import Checkpoint, read_checkpoint
from finetune.training.classifier import ImageClassifier
from finetune.training.fitted_splits import fitted_record, record_of_weights
from finetune.training.recipe import Choice

PURPOSES = {
    "fit": "Fine-tune a classifier on --data.root DIR; everything else has a default. Options of "
    "--data and --model stand behind Lightning's own, those of --trainer.",
    "validate": "Judge a checkpoint on the validation images.",
    "test": "Judge a checkpoint on the test images, and write a report.",
}
TRAINER_DEFAULTS = {
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    # Nothing is logged by the step, so that no step waits for the device.
    "log_every_n_steps": 1,
}


class OneLineParser(LightningArgumentParser):
    """Lightning's parser, with errors in one line instead of behind the whole usage."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None:  # an error of ours that the parser wrapped keeps its own words
            if isinstance(cause, FinetuneError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        if denied := denied_import(message):
            raise UsageError(denied) from ex
        raise UsageError(explain(message, self.prog, self._option_string_actions)) from ex


class FinetuneCLI(LightningCLI):
    """Parses and builds classifier, data and trainer of one verb; runs nothing.

    With ``--ckpt_path`` the checkpoint's settings are the defaults. Options given beside it win in
    ``test`` and ``validate``; ``fit`` goes on as it was begun, and refuses what cannot have an
    effect. The classes come from the data only in ``fit``.
    """

    datamodule: ImageFolderDataModule
    model: ImageClassifier
    trainer: Trainer
    runtime: Runtime

    def __init__(
        self,
        verb: str,
        arguments: Sequence[str],
        *,
        joins: bool = True,
        updates: Checkpoint | None = None,
    ) -> None:
        self.verb = verb
        self.updates = updates  # whose network, weights and split a fit on more images begins with
        self._joins = joins  # otherwise it only looks at the settings, in this process
        self.checkpoint: Checkpoint | None = None
        self.as_given: Namespace | None = None  # before a fit's checkpoint has decided
        self.record: SplitRecord | None = None  # how the checkpoint's fit split its images
        self.backbone: Choice | None = None  # where none was named
        self.image_size: Choice | None = None  # where it had to be chosen before the build
        arguments, self.named_entities = take_all(arguments, "--track-to")
        arguments, imports = take_all(arguments, "--imports")
        trust(imports)
        super().__init__(
            ImageClassifier,
            ImageFolderDataModule,
            save_config_callback=None,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            parser_class=OneLineParser,
            parser_kwargs={
                "allow_abbrev": False,
                "prog": f"finetune {verb}",
                "description": PURPOSES[verb],
            },
            args=list(arguments),
            run=False,
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        purpose = "resume from" if self.verb == "fit" else "judge"
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help=f"Checkpoint to {purpose}."
        )
        parser.add_argument("--name", type=str | None, default=None, help="Name of the run.")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        # Read and taken out before this parser sees them, as --resume below; here for its help.
        parser.add_argument(
            "--imports",
            type=str | None,
            help="Module whose classes options and files may name; can be given several times.",
        )
        if self.verb != "validate":
            parser.add_argument(
                "--track-to",
                type=str | None,
                help="Weights & Biases entity that figures may go to beside your own ones.",
            )
        if self.verb != "fit":
            parser.add_argument(
                "--allow-reuse",
                action="store_true",
                help="Judge also images that trained, where --data.manifest asks for it; say so.",
            )
        if self.verb == "fit":
            parser.add_argument(
                "--monitor",
                type=str,
                default="val/nll",
                help="Figure that picks the best epoch: val/nll (of numbers val/mae), val/loss ...",
            )
            parser.add_argument(
                "--patience",
                type=int | None,
                default=None,
                help="Epochs without a better one after which a phase stops; 0: none stops.",
            )
            parser.add_argument(
                "--time-limit",
                type=str | None,
                default=None,
                help="Stop in good order after this time: 90s, 10m, 2h.",
            )
            parser.add_argument("--resume", type=str | None, help="Run folder to resume.")
            more = "Run folder to begin from, where images or classes were added."
            parser.add_argument("--update", type=str | None, help=more)
            parser.add_argument("--seeds", type=int | None, help="Fit this many members.")
            parser.add_argument("--folds", type=int | None, help="Fit a member on each fold.")
            several = "Fit a final layer on each of A,B=FILE,... and what is best together."
            parser.add_argument("--backbones", type=str | None, help=several)
            parser.add_argument("--engine", type=Engine | None, help="Fit members by local or ray.")
            parser.add_argument("--address", type=str | None, help="Of a Ray cluster that runs.")
            # Members of an ensemble differ in seed_everything and share the split of data.seed.
            parser.link_arguments("seed_everything", "data.training_seed", compute_fn=_seed_number)
            # Elsewhere the checkpoint decides the classes.
            parser.link_arguments("data.class_names", "model.class_names", apply_on="instantiate")
            parser.link_arguments("data.task_name", "model.task", apply_on="instantiate")

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        path = checkpoint_option(args)
        if path is not None:
            self.checkpoint = read_checkpoint(path)
            self.record = fitted_record(path, self.checkpoint.details)
            manifest = next(reversed(take_all(args, "--data.manifest")[1]), None)
            try:
                parser.set_defaults(self._defaults(self.checkpoint, manifest))
            except KeyError as error:  # a setting that this version does not know
                raise damaged(path, str(error)) from error
        elif self.verb != "fit" and not {"-h", "--help"} & set(args):
            raise UsageError(
                f"Expected a checkpoint to {self.verb}, found none; "
                "add --ckpt_path RUN/checkpoints/best.ckpt."
            )
        super().parse_arguments(parser, args)

    def _defaults(self, checkpoint: Checkpoint, manifest: str | None) -> dict[str, Any]:
        settings = {
            key: value
            for key, value in checkpoint.hyper_parameters.items()
            if self.verb != "fit" or key != "class_names"
        }
        # The weights are in the checkpoint: pretrained ones are not fetched again.
        settings["pretrained"] = False
        defaults = {f"model.{key}": value for key, value in settings.items()}
        if self.verb == "fit":
            defaults |= fitted_data(checkpoint)
        else:
            defaults |= dict.fromkeys(("model.task", "data.task"), checkpoint.task.name)
        if self.record is None:
            return defaults
        # A fit says itself which images it takes; the others are about those of the fit.
        dealing = split_settings(self.record, "given" if self.verb == "fit" else manifest)
        if self.verb != "fit" and manifest is not None:
            dealing |= label_columns_of(self.record, manifest)
        return defaults | {f"data.{key}": value for key, value in dealing.items()}

    @override
    def _set_seed(self) -> None:
        seed = self.config.get("seed_everything")
        if not isinstance(seed, bool):
            check_settings({"seed_everything": seed}, {"seed_everything": optional(SEED)})
        super()._set_seed()

    @override
    def before_instantiate_classes(self) -> None:
        trainer = self.config.trainer
        owners = {"model": ImageClassifier, "data": ImageFolderDataModule, "trainer": Trainer}
        for group, owner in owners.items():
            check_no_null(self.config[group], owner, option=f"--{group}.")
        check_each(trainer, fits=self.verb == "fit")
        check_strategy(trainer.strategy, trainer.num_nodes)
        found = Runtime.joined if self._joins else Runtime.chosen
        self.runtime = found(trainer.accelerator, trainer.devices)
        spoken = "seeds folds backbones engine address resume update track_to imports"
        for name in spoken.split():
            if self.config.get(name) is not None:
                raise UsageError(
                    f"Expected --{name.replace('_', '-')} on the command line, "
                    "found it in a file; give it there."
                )
        if self.checkpoint is not None and self.verb == "fit":
            self.as_given = self.config.clone()
            keep_settings(self.config, self.checkpoint)
        elif self.verb == "fit":
            self.backbone = name_backbone(self.config, self.runtime)
            self.image_size = choose_size(self.config)

    @override
    def instantiate_classes(self) -> None:
        """Build data and classifier; the trainer waits until there is a run folder."""
        config = self.config.clone()
        if self.checkpoint is not None:
            build_as_kept(config.model, self.checkpoint)
        elif self.verb == "fit":
            # What weights of ours have learned from is never held out, whoever names them.
            self.record = record_of_weights(
                config.model.pretrained, with_final_layer=config.model.strategy == "all"
            )
        if self.updates is not None:
            build_as_kept(config.model, self.updates)
            config.model.pretrained = str(self.updates.path)
        try:
            self.config_init = self.parser.instantiate_classes(config)
        except ValueError as error:  # a number out of its range, found by the class itself
            if "Requirement 'wandb" in str(error):
                need("track", "a WandbLogger")
            raise UsageError(" ".join(str(error).split())) from error
        self.datamodule = self.config_init["data"]
        if self.record is not None:
            fits = self.verb == "fit"
            listed_by_fit = self.checkpoint is not None and self.config.data.manifest is None
            self.datamodule.follow(
                self.record,
                allow_reuse=fits or self.config.allow_reuse,
                always=fits and not listed_by_fit,
            )
        self.model = self.config_init["model"]
        check_together(lambda: self.build_trainer(logger=False))
        if (kept := self.checkpoint or self.updates) is not None:
            self.model.see_as(kept)

    def build_trainer(self, **settings: Any) -> Trainer:
        """The trainer that the configuration describes, with some of its settings replaced."""
        given = self.config_init["trainer"].as_dict()
        if own_place().launched:
            told = devices_of_launched(given["accelerator"], given["devices"])
            given["devices"], given["num_nodes"] = told
        return Trainer(**{**given, **settings})

    def config_yaml(self, *, as_given: bool = False) -> str:
        """Every resolved setting, ready for ``--config``; or as a resumed fit was given them."""
        config = (self.as_given if as_given and self.as_given else self.config).clone()
        config.ckpt_path = None  # the same run again begins at the beginning
        dumped = self.parser.dump(config, format="json", skip_none=False, skip_link_targets=True)
        return yaml_of(json.loads(dumped))


def build_as_kept(model: Namespace, checkpoint: Checkpoint) -> None:
    """Let a checkpoint say what only a hub or a folder could: its weights and configuration."""
    if model.batchnorm == "auto":
        model.batchnorm = checkpoint.hyper_parameters.get("batchnorm", "eval")
    model.pretrained = False
    if ":" in model.backbone and model.backbone == checkpoint.hyper_parameters["backbone"]:
        model.backbone = checkpoint.network.architecture
        model.network_options = {**checkpoint.network.options, **(model.network_options or {})}
        if model.image_size is None:
            model.image_size = checkpoint.network.arguments.get("img_size")


def fitted_data(checkpoint: Checkpoint) -> dict[str, Any]:
    """How a fit was given its images, but not where, as defaults of a fit that is resumed."""
    data = checkpoint.details.get("data", {})
    known = set(signature(ImageFolderDataModule).parameters) - {
        *("root", "manifest", "label_columns", "training_seed")
    }
    defaults = {f"data.{name}": data[name] for name in known if name in data}
    if data.get("training_seed") is not None:
        defaults["seed_everything"] = data["training_seed"]
    return defaults


def _seed_number(seed: int | bool) -> int:
    return 0 if isinstance(seed, bool) else seed


def quiet_libraries() -> None:
    """Leave only what a user can act upon: for the command, never for the library."""
    import logging
    import warnings

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for message in (
        "LightningCLI's args parameter",
        ".*does not have many workers",
        "It is recommended to use `self.log",  # of figures that all processes have alike
        ".*treespec, LeafSpec.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def interrupted(trainer: Trainer, model: LightningModule) -> bool:
    """Whether Ctrl-C ended the trainer's last work."""
    return str(trainer.state.status) == "interrupted"
