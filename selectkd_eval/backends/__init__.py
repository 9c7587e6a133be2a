"""What writes the answers that pass@1 grades: a Hugging Face model, vLLM, or an OpenAI-compatible server.

`open_backend` is the only way in; the engines are imported when they are asked for.
"""

from __future__ import annotations

from selectkd_eval.backends.backend import Backend
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import PasskOptions


def open_backend(options: PasskOptions) -> Backend:
    """The backend that the options ask for, ready to answer; --base-url implies a server."""
    if options.batch_size < 1:
        raise InputError(f"--batch-size is a count and must be at least 1, but {options.batch_size} was given")
    if options.base_url or options.backend == "server":
        if not options.base_url:
            raise InputError("--backend server needs the server's address: give --base-url http://localhost:8000/v1")
        from selectkd_eval.backends.server import Server

        return Server(options)
    if options.backend == "vllm":
        from selectkd_eval.backends.vllm import VLLM

        return VLLM(options)
    from selectkd_eval.backends.hugging_face import HuggingFace

    return HuggingFace(options)
