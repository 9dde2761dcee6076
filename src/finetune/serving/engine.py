"""Images into answers for many requests: some threads decode, one runs the network in batches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, Queue, SimpleQueue
from typing import Generic, TypeVar

import torch
from torch import Tensor

from finetune.data.decoding import MAX_PIXELS
from finetune.data.decoding_memory import MAX_DECODING_MB
from finetune.data.workers import usable_cores
from finetune.errors import ImageError
from finetune.prediction.inputs import ImageViews
from finetune.serving.answerers import Model, answerer_of
from finetune.serving.answers import JsonAnswer, json_answers
from finetune.serving.budget import Budget

Result = TypeVar("Result")
BATCH_SIZE = 32
BATCH_SECONDS = 0.005  # that an image waits for others which are being decoded
MOST_DECODERS = 4
NAME = Path("image")  # of every image, in messages: clients' names are not repeated


@dataclass(eq=False, slots=True)
class Question(Generic[Result]):
    """An image of a request: what its file holds until a thread takes it, and its answer."""

    content: bytes | None
    answer: Future[Result] = field(default_factory=Future)

    def taken(self) -> bytes | None:
        """The content, for the one thread that works on it; None if nobody waits any more."""
        content, self.content = self.content, None
        return content if self.answer.set_running_or_notify_cancel() else None

    def drop(self) -> None:
        """Nobody waits any more: it is not begun, and its content is freed at once."""
        self.content = None
        self.answer.cancel()


class Engine:
    """Owns a model; answers at once what arrives together.

    Decoded images wait in a queue of two batches: where the network is slower, decoders wait, so
    that memory is bounded by the images in work.

    Args:
        model: a classifier or an ensemble, where it is to run; or an export.
        images_in_work: most images that wait or are answered; more are turned away.
        max_pixels: most pixels of an image.
        max_decoding_mb: most memory for decoding, in MiB, of all threads together.
    """

    def __init__(
        self,
        model: Model,
        images_in_work: int,
        max_pixels: int = MAX_PIXELS,
        max_decoding_mb: int = MAX_DECODING_MB,
    ) -> None:
        self.model = answerer_of(model)
        self.limits = max_pixels, max_decoding_mb
        self.in_work = Budget(images_in_work)
        self._errands: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._decoded: Queue[tuple[Question[JsonAnswer], list[Tensor]]] = Queue(2 * BATCH_SIZE)
        self.network = threading.Lock()  # held by whoever runs it
        # Daemons: a decoder that is stuck in a hostile image does not hold the end of the process.
        for _ in range(min(usable_cores(), MOST_DECODERS)):
            threading.Thread(target=self._run_errands, daemon=True).start()
        self._answering = threading.Thread(target=self._answer_batches, daemon=True)
        self._answering.start()

    @property
    def is_alive(self) -> bool:
        """Whether there is still who answers."""
        return self._answering.is_alive()

    def ask(self, contents: Sequence[bytes]) -> list[Question[JsonAnswer]]:
        """Have files of images answered; those of several callers in one batch.

        Returns:
            One a file; its answer may be an :class:`ImageError`.

        Raises:
            Busy: too many images are in work.
        """
        self.in_work.take(len(contents))
        questions = [Question[JsonAnswer](content) for content in contents]
        for question in questions:
            self._errands.put(partial(self._decode, question))
        return questions

    def run(self, work: Callable[[bytes], Result], content: bytes) -> Question[Result]:
        """Do something else with a file, in a thread; ``network`` is held by who runs that.

        Raises:
            Busy: too much is in work.
        """
        self.in_work.take(1)
        question = Question[Result](content)
        self._errands.put(partial(self._work, work, question))
        return question

    def _work(self, work: Callable[[bytes], Result], question: Question[Result]) -> None:
        content = question.taken()
        if content is None:
            self.in_work.give_back(1)
            return
        try:
            self._conclude(question, work(content))
        except BaseException as error:
            self._conclude(question, error)

    def _run_errands(self) -> None:
        while True:
            self._errands.get()()

    def _decode(self, question: Question[JsonAnswer]) -> None:
        content = question.taken()
        if content is None:
            self.in_work.give_back(1)
            return
        try:
            images = ImageViews([(NAME, content)], self.model.preprocessings, *self.limits)
            _, views = images[0]
            if isinstance(views, str):
                raise ImageError(views)
        except BaseException as error:
            self._conclude(question, error)
            return
        self._decoded.put((question, views))

    def _answer_batches(self) -> None:
        while True:
            batch = [self._decoded.get()]
            until = time.monotonic() + BATCH_SECONDS
            # An image that is alone in work waits for nobody.
            while len(batch) < min(BATCH_SIZE, self.in_work.taken):
                try:
                    batch.append(self._decoded.get(timeout=max(0.0, until - time.monotonic())))
                except Empty:
                    break
            questions = [question for question, _ in batch]
            try:
                answers: Sequence[JsonAnswer | BaseException] = self._answers(
                    [views for _, views in batch]
                )
            except BaseException as error:
                answers = [error] * len(batch)
            for question, answer in zip(questions, answers, strict=True):
                self._conclude(question, answer)
            del batch, questions, answers

    def _answers(self, views: Sequence[Sequence[Tensor]]) -> list[JsonAnswer]:
        together = [torch.stack(each) for each in zip(*views, strict=True)]
        with self.network, torch.inference_mode():
            return json_answers(self.model.answer(together, [NAME] * len(views)))

    def _conclude(self, question: Question[Result], answer: Result | BaseException) -> None:
        self.in_work.give_back(1)
        if isinstance(answer, BaseException):
            question.answer.set_exception(answer)
        else:
            question.answer.set_result(answer)
